"""SEED's tokens and both directions of its language model, measured on held-out images; pictures on request.

    python benchmarks/seed.py --tokenizer ckpt:runs/seed_stage2/last.ckpt --first ckpt:runs/seed_stage1/last.ckpt \
        --data EmojiData --data.image_size 128
    python benchmarks/seed.py --tokenizer seed_stage2_emoji --llm ckpt:runs/seed_llm/last.ckpt \
        --decoder seed_pixels_emoji --data EmojiData --data.image_size 128 --pictures docs/images

Tokenizer: codes in use, how near the generation embedding is to the teacher's vector, and from how many first tokens
on. First stage: retrieval by its embeddings, and by those reconstructed from the codes. Language model: captions, and
whether the embedding that it writes for a caption finds the image of that caption among the candidates.
"""

import argparse
import time
from itertools import chain, islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from _options import make_data, parse_data_arguments
from _record import environment, write
from torch import Tensor


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True, help="SEED's second stage: registry NAME or ckpt:PATH")
    parser.add_argument("--first", help="its first stage, for retrieval")
    parser.add_argument("--llm", help="SEEDLLM, for both directions")
    parser.add_argument("--decoder", help="model that draws generation embeddings, for pictures")
    parser.add_argument("--data", required=True, help="class in datamodules; its arguments follow as --data.KEY VALUE")
    parser.add_argument("--candidates", type=int, default=100, help="held-out images among which one is to be found")
    parser.add_argument("--num-beams", type=int, default=1, help="of text to image; 4 as published, 1 is greedy")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options, rest = parser.parse_known_args(arguments)

    from zoo.registry import model_from

    torch.manual_seed(options.seed)
    start = time.perf_counter()
    given = parse_data_arguments(parser, rest)
    try:
        tokenizer = model_from(options.tokenizer).eval()
        others = {n: model_from(r).eval() for n in ("first", "llm", "decoder") if (r := getattr(options, n))}
        check_tokenizers(tokenizer, others, options)
        data = make_data(options.data, given, image_size=tokenizer.image_size)
        data.prepare_data()
        data.setup("test")
        held_out = chain.from_iterable(data.view(split) for split in ("test", "val"))
        samples = list(islice(held_out, options.candidates))
        images, texts = torch.stack([s["image"] for s in samples]), [s["caption"] for s in samples]
        metrics, curves, made = measure(tokenizer, others, images, texts, options)
    except (ValueError, TypeError, FileNotFoundError, ModuleNotFoundError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    record = {
        "benchmark": "seed",
        "status": "ok",
        "model": options.tokenizer,
        "data": f"{options.data}, {len(images)} held-out images (test, then val)",
        "metrics": metrics,
        "n": len(images),
        "protocol": {
            "cosines": "of vectors less the mean over the candidates",
            "found": "nearest of the candidates' teacher vectors, by that cosine; ties count as misses",
            "prefix": "the mean of all codes stands for the tokens behind the first m",
            "text_to_image": "greedy" if options.num_beams == 1 else f"{options.num_beams} beams",
            "models": {name: getattr(options, name) for name in ("first", "llm", "decoder")},
            "curves": curves,
            "written": made,
        },
        "environment": environment(),
        "seconds": round(time.perf_counter() - start, 2),
    }
    for name, value in metrics.items():
        print(f"  {name:28}{value:10.4g}")
    if options.pictures:
        draw(tokenizer, others, images, texts, curves, made, options)
    if options.out:
        write(record, options.out)
        print(f"protocol and values: {options.out}")
    return record


def check_tokenizers(tokenizer: Any, others: dict[str, Any], options: argparse.Namespace) -> None:
    """Refuse a language model that writes ids of another tokenizer, which would mean other codes here."""
    from zoo.fingerprints import fingerprint

    if "llm" in others and fingerprint(others["llm"].tokenizer) != fingerprint(tokenizer):
        raise ValueError(
            f"{options.llm} writes the ids of the tokenizer {others['llm'].hparams['tokenizer']!r}, whose weights are "
            f"not those of {options.tokenizer!r}: set --tokenizer to it"
        )


@torch.no_grad()
def measure(
    tokenizer: Any, others: dict[str, Any], images: Tensor, texts: list[str], options: argparse.Namespace
) -> tuple[dict[str, float], dict[str, list[float]], dict[str, Any]]:
    """Values, curves over the number of tokens, and what the language model wrote."""
    from zoo.metrics.caption_report import CaptionReport
    from zoo.metrics.retrieval import recalls
    from zoo.tokens import Tokens, as_pixels

    pixels = as_pixels(images)
    parts = [tokenizer.encode(part) for part in pixels.split(32)]
    target = torch.cat([teacher_vectors(tokenizer, part) for part in pixels.split(32)])
    ids = torch.cat([part.ids for part in parts])
    tokens = Tokens(ids, None, tokenizer.spec)
    counts = torch.bincount(ids.flatten(), minlength=tokenizer.spec.vocab_size).double()
    p = counts / counts.sum()
    own = torch.eye(len(images), dtype=torch.bool)
    metrics = {
        "codebook_usage": (counts > 0).double().mean().item(),
        "perplexity": torch.special.entr(p).sum().exp().item(),
    }
    curves: dict[str, list[float]] = {"cosine": [], "found_r@1": []}
    for m in tokenizer.spec.prefix_lengths:
        cosines = cosine(tokenizer.decode(tokens.first(m)), target)
        curves["cosine"].append(cosines.diagonal().mean().item())
        curves["found_r@1"].append(recalls(cosines, cosines, own)["i2t_r@1"])
    metrics |= {"generation_cosine": curves["cosine"][-1], "generation_found_r@1": curves["found_r@1"][-1]}
    if "first" in others:
        first = others["first"]
        continuous = first.retrieve(pixels, texts).contrast
        quantised = first.retrieve(None, texts, embeddings=tokenizer.reconstruct_causal(tokens)).contrast
        for name, scores in (("continuous", continuous), ("codes", quantised)):
            metrics |= {f"{name}_{key}": value for key, value in recalls(scores, scores, own).items()}
    made: dict[str, Any] = {}
    if "llm" in others:
        llm = others["llm"]
        report, shuffled = CaptionReport(), CaptionReport()
        said = [caption for part in pixels.split(32) for caption in llm.caption(part, num_beams=3, max_new_tokens=20)]
        report.update(said, [[text] for text in texts])
        metrics |= report.compute()
        # the worth of knowing the language of names alone: each caption against the names of the next image
        shuffled.update(said, [[text] for text in (*texts[1:], texts[0])])
        metrics["cider_d_of_other_images"] = shuffled.compute()["cider_d"]
        drawn = []
        for i in range(0, len(texts), 16):
            some = texts[i : i + 16]
            drawn.append(llm.generate_images(some, as_tokens=True, num_beams=options.num_beams, top_p=None).ids)
        ids = torch.cat(drawn)
        cosines = cosine(tokenizer.decode(Tokens(ids, None, tokenizer.spec)), target)
        metrics |= {f"text_to_image_{k}": v for k, v in recalls(cosines, cosines, own).items() if k.startswith("i2t")}
        made = {"captions": said, "ids": ids.tolist()}
    metrics["chance_r@1"] = 1 / len(images)
    return metrics, curves, made


def teacher_vectors(tokenizer: Any, images: Tensor) -> Tensor:
    """The vectors that the generation embeddings should equal."""
    if "teacher" in tokenizer.frozen:
        return tokenizer.frozen["teacher"].embed(images)
    return tokenizer.frozen["vision"](images).mean(1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of all pairs, less the mean of the second set, which all vectors of a teacher have in common."""
    mean = b.mean(0)
    return F.normalize(a - mean, dim=-1) @ F.normalize(b - mean, dim=-1).t()


@torch.no_grad()
def draw(
    tokenizer: Any,
    others: dict[str, Any],
    images: Tensor,
    texts: list[str],
    curves: dict[str, list[float]],
    made: dict[str, Any],
    options: argparse.Namespace,
) -> None:
    """Curve over the prefix, reconstructions, and both directions of the language model."""
    from zoo.callbacks.pictures import caption_sheet, image_rows, line_plots
    from zoo.files.atomic import write_picture_whole
    from zoo.tokens import Tokens, as_pixels

    folder: Path = options.pictures
    series = {f"prefix/{name}": [(m + 1.0, v) for m, v in enumerate(values)] for name, values in curves.items()}
    write_picture_whole(folder / "seed_prefix.png", line_plots(series, x_name="first tokens"))
    chosen = torch.linspace(0, len(images) - 1, 10).long()
    pixels = as_pixels(images[chosen])
    if "decoder" in others:
        decoder, count = others["decoder"], tokenizer.spec.num_tokens
        tokens = tokenizer.encode(pixels)
        rows = {"original": pixels, "teacher's vector": decoder.images_of(teacher_vectors(tokenizer, pixels))}
        for m in sorted({count, count // 2, count // 4, 1} & {*tokens.spec.prefix_lengths}, reverse=True):
            rows[f"{m} tokens"] = decoder.images_of(tokenizer.decode(tokens.first(m)))
        write_picture_whole(folder / "seed_reconstructions.png", image_rows(rows))
    if made:
        lines = [[made["captions"][i], texts[i]] for i in chosen.tolist()]
        write_picture_whole(folder / "seed_captions.png", caption_sheet(pixels, lines, columns=5, width=150))
        if "decoder" in others:
            ids = torch.tensor(made["ids"])[chosen]
            drawn = others["decoder"].images_of(tokenizer.decode(Tokens(ids, None, tokenizer.spec)))
            sheet = caption_sheet(drawn, [[texts[i]] for i in chosen.tolist()], columns=5, width=150)
            write_picture_whole(folder / "seed_text_to_image.png", sheet)


if __name__ == "__main__":
    main()
