"""Reconstruction metrics of one tokenizer on one data set, with their protocol.

    python benchmarks/rfid.py --model dvae_emoji --data EmojiData --out results/dvae_emoji.json

Every image of the split is seen once, in order and without augmentation, at the model's image size unless
``--data.image_size`` says another. With ``--inception-weights PATH`` the Frechet distance is rFID; without, it is
FD-lite0, under that name. ``--lpips vgg=PATH`` adds the published LPIPS.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from _options import make_data, parse_data_arguments
from _record import environment, write


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="registry NAME, NAME:TAG, NAME:PATH, NAME:random or ckpt:PATH")
    parser.add_argument("--data", required=True, help="class in datamodules; its arguments follow as --data.KEY VALUE")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--num-images", type=int, help="only the first so many")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument(
        "--precision", default="32", choices=("32", "bf16", "16"), help="of the decoder; ids are always those of 32"
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inception-weights", help="local file, for rFID")
    parser.add_argument(
        "--lpips",
        action="append",
        default=[],
        metavar="NET=PATH",
        help="published LPIPS, on vgg or alex",
    )
    parser.add_argument("--floor", action="store_true", help="also the distance between two halves of the real images")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(arguments)

    from zoo.metrics.evaluate import evaluate
    from zoo.registry import model_from
    from zoo.tokens.abilities import image_size_of

    data_arguments = parse_data_arguments(parser, rest)
    torch.manual_seed(options.seed)
    try:
        model = model_from(options.model)
        result = evaluate(
            model,
            make_data(options.data, data_arguments, batch_size=options.batch_size, image_size=image_size_of(model)),
            split=options.split,
            num_images=options.num_images,
            device=options.device,
            precision=options.precision,
            progress=sys.stderr.isatty(),
            inception_weights=options.inception_weights,
            lpips_backbones=_lpips_backbones(options.lpips),
            floor=options.floor,
        )
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    record = {
        "benchmark": "rfid",
        "status": "ok",
        "model": options.model,
        "data": f"{options.data} {options.split}, {'x'.join(map(str, result['protocol']['image_shape']))} px",
        "metrics": result["metrics"],
        "n": result["protocol"]["num_images"],
        "protocol": {"seed": options.seed} | result["protocol"],
        "environment": environment(options.device, options.precision),
        "seconds": round(result["seconds"], 2),
    }
    print(f"{record['model']} on {record['data']}, n = {record['n']:,}")
    for name, value in record["metrics"].items():
        print(f"  {name:20} {value:.6g}")
    if options.out:
        write(record, options.out)
        print(f"protocol and values: {options.out}")
    return record


def _lpips_backbones(given: list[str]) -> dict[str, str]:
    """``vgg=PATH`` as network -> file."""
    found = {}
    for word in given:
        net, _, path = word.partition("=")
        if net not in ("vgg", "alex") or not path:
            raise ValueError(f"--lpips takes vgg=PATH or alex=PATH, a file of torchvision, got {word!r}")
        found[net] = path
    return found


if __name__ == "__main__":
    main()
