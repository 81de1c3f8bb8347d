"""Captions and retrieval of a vision-language model, with the protocol.

    python benchmarks/vision_language.py --model ckpt:runs/blip2_stage2/last.ckpt --data EmojiData --split test \
        --data.style openmoji --out benchmarks/results/blip2_stage2_emoji_openmoji.json

All that the model can do is measured: captions by CIDEr-D, BLEU-4 and ROUGE-L; retrieval by contrast, and re-ranked by
the matching head; retrieval by the likelihood of texts, as pointwise mutual information with the image.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _options import make_data, parse_data_arguments
from _record import environment, write

from zoo.files.atomic import write_picture_whole


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="registry NAME, NAME:PATH, NAME:random or ckpt:PATH")
    parser.add_argument("--data", required=True, help="class in datamodules; its arguments follow as --data.KEY VALUE")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    parser.add_argument("--num-images", type=int, help="only the first so many")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-beams", type=int, default=3)
    parser.add_argument("--max-new-tokens", type=int, default=20)
    parser.add_argument("--rerank", type=int, default=32, help="candidates for the matching head; 128 as published")
    parser.add_argument("--no-likelihood", action="store_true", help="leave out retrieval by likelihood: n x n texts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="sheet of the best captions and of some without a right word")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(arguments)

    from zoo.registry import model_from
    from zoo.tokens.abilities import image_size_of

    data_arguments = parse_data_arguments(parser, rest)
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    try:
        model = model_from(options.model).eval().to(options.device)
        data = make_data(options.data, data_arguments, batch_size=options.batch_size, image_size=image_size_of(model))
        data.prepare_data()
        data.setup("test")
        images, texts = collect(data.view(options.split), options.num_images)
        metrics, samples, protocol = measure(model, images, texts, options)
        if options.picture:
            write_picture_whole(options.picture, good_and_bad(images, samples, options.seed))
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    record = {
        "benchmark": "vision_language",
        "status": "ok",
        "model": options.model,
        "data": f"{options.data} {options.split}"
        + "".join(f", {key} {value}" for key, value in data_arguments.items() if key != "image_size"),
        "metrics": metrics | {"trainable": sum(p.numel() for p in model.parameters() if p.requires_grad)},
        "n": len(images),
        "protocol": protocol | {"init_args": model.init_args(), "samples": samples},
        "environment": environment(options.device, "32"),
        "seconds": round(time.perf_counter() - start, 2),
    }
    for name, value in metrics.items():
        print(f"  {name:24}{value:10.4g}")
    if options.out:
        write(record, options.out)
        print(f"protocol and values: {options.out}")
    return record


def collect(dataset: Any, count: int | None) -> tuple[torch.Tensor, list[list[str]]]:
    """Stack the first images of a data set, with the texts of each.

    Raises:
        ValueError: for data without captions.
    """
    samples = [dataset[i] for i in range(min(len(dataset), count or len(dataset)))]
    samples = [sample for sample in samples if sample is not None]
    if not samples or "caption" not in samples[0]:
        raise ValueError("the data has no captions: take EmojiData or CaptionData")
    images = torch.stack([sample["image"] for sample in samples])
    return images, [sample.get("captions") or [sample["caption"]] for sample in samples]


def measure(
    model: Any, images: torch.Tensor, texts: list[list[str]], options: argparse.Namespace
) -> tuple[dict[str, float], list[dict[str, Any]], dict[str, Any]]:
    """All metrics of what the model can do, what it wrote, and the protocol."""
    from zoo.metrics.caption_report import CaptionReport
    from zoo.metrics.retrieval import RetrievalReport
    from zoo.tokens.abilities import Captioner

    metrics: dict[str, float] = {}
    writing = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
    captions, retrieval = (
        CaptionReport(),
        RetrievalReport(options.rerank, not options.no_likelihood, options.batch_size),
    )
    if isinstance(model, Captioner):
        for start in range(0, len(images), options.batch_size):
            part = slice(start, start + options.batch_size)
            captions.update(model.caption(images[part].to(options.device), **writing), texts[part])
            print(f"\r{captions.num_images} of {len(images)} captions", end="", file=sys.stderr, flush=True)
        metrics |= captions.compute()
    retrieval.update(images, texts)
    metrics |= retrieval.compute(model, options.device)
    if not metrics:
        raise ValueError(f"{type(model).__name__} neither writes captions nor retrieves: nothing to measure")
    metrics["chance_r@1"] = retrieval.chance()
    return metrics, captions.records(), captions.protocol(writing) | retrieval.protocol()


def good_and_bad(images: torch.Tensor, samples: list[dict[str, Any]], seed: int, each: int = 15) -> Any:
    """A sheet of the captions nearest to a reference, best first, and then of some, drawn, without a right word.

    Raises:
        ValueError: for a model that wrote nothing.
    """
    from zoo.callbacks.pictures import caption_sheet
    from zoo.metrics.captions import caption_tokens, rouge_l
    from zoo.tokens import as_pixels

    if not samples:
        raise ValueError("the model writes no captions: leave out --picture")
    tokenised = [(caption_tokens(s["caption"]), [caption_tokens(r) for r in s["references"]]) for s in samples]
    scores = [rouge_l([image]) for image in tokenised]
    order = sorted(range(len(samples)), key=lambda i: -scores[i])
    good = [i for i in order if scores[i] > 0][:each]
    wrong = [i for i in order if scores[i] == 0]
    picked = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(seed))[:each]
    shown = good + [wrong[i] for i in picked.tolist()]
    lines = [[samples[i]["caption"], samples[i]["references"][0]] for i in shown]
    return caption_sheet(as_pixels(images[shown]), lines, columns=5, width=150)


if __name__ == "__main__":
    main()
