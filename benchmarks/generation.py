"""Quality of the samples of a second stage: distances to a reference set, with baselines and the protocol.

    python benchmarks/generation.py --model maskgit_emoji --data EmojiData --reference test --num-images 1000 \
        --steps 8 --choice-temperature 4.5 --seed 0 --out benchmarks/results/maskgit_emoji.json

With ``--inception-weights PATH`` the metrics are FID, KID, Inception score, precision and recall; without, FD-lite0,
KD-lite0, precision and recall on EfficientNet-Lite0 features, under these names.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from _options import make_data, parse_data_arguments
from _record import environment, write

#: settings of ``generate``; only those that are given are handed on
SAMPLING: dict[str, Any] = {
    "steps": int, "schedule": str, "choice_temperature": float, "sampling_temperature": float, "guidance": float,
    "guidance_schedule": str, "order": str, "temperature": float, "top_k": int, "top_p": float,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="registry NAME, NAME:TAG, NAME:PATH, NAME:random or ckpt:PATH")
    parser.add_argument("--data", required=True, help="class in datamodules; its arguments follow as --data.KEY VALUE")
    parser.add_argument("--reference", default="test", choices=("train", "val", "test"), help="what to compare with")
    parser.add_argument("--num-images", type=int, help="to generate; default: as many as the reference has")
    for name, kind in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help="of the sampler; default: the model's")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--precision", default="32", choices=("32", "bf16", "16"))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inception-weights", help="local file, for FID, KID and the Inception score")
    parser.add_argument("--no-baselines", action="store_true", help="only the model")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(arguments)

    from zoo.metrics.generation import evaluate_generation
    from zoo.registry import model_from
    from zoo.tokens.abilities import image_size_of

    data_arguments = parse_data_arguments(parser, rest)
    sampling = {name: value for name in SAMPLING if (value := getattr(options, name)) is not None}
    torch.manual_seed(options.seed)
    try:
        model = model_from(options.model)
        result = evaluate_generation(
            model,
            make_data(options.data, data_arguments, batch_size=options.batch_size, image_size=image_size_of(model)),
            reference=options.reference,
            num_images=options.num_images,
            sampling=sampling,
            seed=options.seed,
            batch_size=options.batch_size,
            device=options.device,
            precision=options.precision,
            baselines=not options.no_baselines,
            inception_weights=options.inception_weights,
            say=(lambda line: print(line, file=sys.stderr, flush=True)) if sys.stderr.isatty() else lambda line: None,
        )
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    protocol, baselines = result["protocol"], result["baselines"]
    generated, reference = protocol["generated"], protocol["reference"]
    distance = next(iter(result["metrics"]))
    record = {
        "benchmark": "generation",
        "status": "ok",
        "model": options.model,
        "data": f"{options.data} {options.reference} ({reference['num_images']:,} images), "
        f"{'x'.join(map(str, reference['image_shape']))} px",
        "metrics": result["metrics"] | {f"{distance}_{name}": row[distance] for name, row in baselines.items()},
        "n": generated["num_images"],
        "protocol": protocol | {"baselines": {k: protocol["baselines"][k] | v for k, v in baselines.items()}},
        "environment": environment(options.device, options.precision),
        "seconds": round(result["seconds"], 2),
    }
    print(f"{record['model']} against {record['data']}, n = {record['n']:,}")
    print(f"  {'':16}" + "".join(f"{name:>20}" for name in result["metrics"]))
    for name, row in {"model": result["metrics"], **baselines}.items():
        print(f"  {name:16}" + "".join(f"{row[metric]:20.4g}" for metric in result["metrics"]))
    if options.out:
        write(record, options.out)
        print(f"protocol and values: {options.out}")
    return record


if __name__ == "__main__":
    main()
