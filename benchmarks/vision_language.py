"""How well a model's image tokens and text belong together: captions and retrieval, with the protocol.

    python benchmarks/vision_language.py --model ckpt:runs/blip2_stage2/last.ckpt --data EmojiData --split test \
        --data.style openmoji --out benchmarks/results/blip2_stage2_emoji_openmoji.json

Whatever the model can do is measured: ``caption`` gives CIDEr-D, BLEU-4 and ROUGE-L; ``retrieve`` gives recall by
contrast, and re-ranked by the matching head; ``log_likelihood`` gives recall by how much an image speaks for a text.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _record import environment, write
from rfid import _data, _data_arguments

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
    parser.add_argument("--no-likelihood", action="store_true", help="leave out retrieval by likelihood, n x n texts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--picture", type=Path, help="sheet of the best captions and of some without a right word")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(arguments)

    from zoo.registry import model_from
    from zoo.tokens.abilities import image_size_of

    data_arguments = _data_arguments(parser, rest)
    torch.manual_seed(options.seed)
    start = time.perf_counter()
    try:
        model = model_from(options.model).eval().to(options.device)
        data = _data(options.data, data_arguments, batch_size=options.batch_size, image_size=image_size_of(model))
        data.prepare_data()
        data.setup("test")
        images, texts = collect(data.view(options.split), options.num_images)
        metrics, samples = measure(model, images, texts, options)
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
        "protocol": {
            "captions": f"{options.num_beams} beams, at most {options.max_new_tokens} tokens; references tokenised by "
            "zoo.metrics.captions.caption_tokens; CIDEr-D counts its words in these images",
            "retrieval": "each image has its own texts, all texts and images are candidates; ties count as misses",
            "likelihood": "log p(text | image) - log mean over images of p(text | image)",
            "rerank": options.rerank,
            "init_args": model.init_args(),
            "samples": samples,
        },
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
    """Images and the texts of each."""
    samples = [dataset[i] for i in range(min(len(dataset), count or len(dataset)))]
    samples = [sample for sample in samples if sample is not None]
    if not samples or "caption" not in samples[0]:
        raise ValueError("the data has no captions: take EmojiData or CaptionData")
    images = torch.stack([sample["image"] for sample in samples])
    return images, [sample.get("captions") or [sample["caption"]] for sample in samples]


def measure(
    model: Any, images: torch.Tensor, texts: list[list[str]], options: argparse.Namespace
) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """All that the model can do, and some of what it wrote."""
    from zoo.metrics.captions import BLEU, ROUGEL, CIDErD
    from zoo.metrics.retrieval import by_surprise, likelihoods, recalls
    from zoo.tokens.abilities import Scorer

    metrics: dict[str, float] = {}
    written: list[str] = []
    if hasattr(model, "caption"):
        for part in images.split(options.batch_size):
            settings = {"num_beams": options.num_beams, "max_new_tokens": options.max_new_tokens}
            written += model.caption(part.to(options.device), **settings)
            print(f"\r{len(written)} of {len(images)} captions", end="", file=sys.stderr, flush=True)
        for name, metric in (("cider_d", CIDErD()), ("bleu_4", BLEU()), ("rouge_l", ROUGEL())):
            metric.update(written, texts)
            metrics[name] = float(metric.compute())
        metrics["distinct_captions"] = float(len(set(written)))
    every = [text for some in texts for text in some]
    owner = torch.tensor([i for i, some in enumerate(texts) for _ in some])
    belongs = torch.arange(len(images))[:, None] == owner[None]
    pixels = images.to(options.device)
    if hasattr(model, "retrieve"):
        scores = model.retrieve(pixels, every, rerank=options.rerank, batch_size=options.batch_size)
        contrast = scores.contrast.float().cpu()
        metrics |= recalls(contrast, contrast, belongs)
        ranked = recalls(scores.image_to_text.float().cpu(), scores.text_to_image.float().cpu(), belongs)
        metrics |= {f"rerank_{name}": value for name, value in ranked.items()}
    if isinstance(model, Scorer) and not options.no_likelihood:
        surprise = by_surprise(likelihoods(model, pixels, every, options.batch_size))
        metrics |= {f"likelihood_{name}": value for name, value in recalls(surprise, surprise, belongs).items()}
    if not metrics:
        raise ValueError(f"{type(model).__name__} neither writes captions nor retrieves: nothing to measure")
    metrics["chance_r@1"] = float(belongs.double().mean())
    shown = [{"caption": c, "references": r} for c, r in zip(written, texts, strict=False)]
    return metrics, shown


def good_and_bad(images: torch.Tensor, samples: list[dict[str, Any]], seed: int, each: int = 15) -> Any:
    """A sheet of the captions nearest to a reference, best first, and then of some, drawn, without a right word.

    Raises:
        ValueError: for a model that wrote nothing.
    """
    from zoo.callbacks.pictures import caption_sheet
    from zoo.metrics.captions import ROUGEL
    from zoo.tokens import as_pixels

    if not samples:
        raise ValueError("the model writes no captions: leave out --picture")
    scores = []
    for sample in samples:
        metric = ROUGEL()
        metric.update([sample["caption"]], [sample["references"]])
        scores.append(float(metric.compute()))
    order = sorted(range(len(samples)), key=lambda i: -scores[i])
    good = [i for i in order if scores[i] > 0][:each]
    wrong = [i for i in order if scores[i] == 0]
    picked = torch.randperm(len(wrong), generator=torch.Generator().manual_seed(seed))[:each]
    shown = good + [wrong[i] for i in picked.tolist()]
    lines = [[samples[i]["caption"], samples[i]["references"][0]] for i in shown]
    return caption_sheet(as_pixels(images[shown]), lines, columns=5, width=150)


if __name__ == "__main__":
    main()
