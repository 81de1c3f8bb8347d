"""Seconds per generated image: MaskGIT's parallel decoding against our own autoregressive model with cached keys.

    python benchmarks/maskgit_speed.py --threads 2 --out benchmarks/results/maskgit_speed.json
    python benchmarks/maskgit_speed.py --threads 2 --curve docs/images/maskgit_speed.png

Both models have the same width, depth, heads, tokenizer and number of classes, and random weights; tokens are made, and
not decoded to pixels. They alternate, so that a change of the load hits both; the ratio is that of the medians.
``--curve`` draws seconds against the number of tokens, of codes and of steps, with Pillow.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _record import environment, run, write

import zoo
from zoo.callbacks.pictures import line_plots
from zoo.files.atomic import write_picture_whole
from zoo.files.strict_json import dump_json
from zoo.models.dvae import DVAE
from zoo.registry import model_from

CODES, CLASSES = 512, 9
COUNTS = (64, 256, 1024)
CODEBOOKS = (512, 2048, 8192, 16384)
STEPS = (1, 2, 4, 8, 12, 16)
Make = Callable[[], Any]


def models(tokens: int, codes: int, width: int, depth: int, heads: int) -> tuple[Any, Any]:
    """MaskGIT and ARTransformer over a small untrained tokenizer with a square grid of so many tokens."""
    name = f"benchmark_tokenizer_{tokens}_{codes}"
    if name not in zoo.list_models(name):
        side = round(tokens**0.5)
        zoo.register(
            name, DVAE, paper="none", image_size=4 * side, width=8, blocks=1, groups=3, vocab_size=codes, code_width=16
        )
    torch.manual_seed(0)
    sizes = {"tokenizer": f"{name}:random", "num_classes": CLASSES, "width": width, "depth": depth, "heads": heads}
    return (
        model_from("maskgit_tiny:random", **sizes, class_dropout=0.0).eval(),
        model_from("ar_transformer_tiny:random", **sizes).eval(),
    )


def alternate(sides: dict[str, Make], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, after one that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, make in sides.items():
            start = time.perf_counter()
            make()
            if repeat:
                times[name].append(time.perf_counter() - start)
        print(repeat, {k: round(v[-1], 3) for k, v in times.items() if v}, flush=True)
    return times


def measure(
    tokens: int, batch: int, steps: int, repeats: int, sizes: dict[str, int], codes: int = CODES
) -> dict[str, Any]:
    """The record of one comparison."""
    maskgit, ar = models(tokens, codes, **sizes)
    sides: dict[str, Make] = {
        "maskgit": lambda: maskgit.generate(0, batch, steps=steps, as_tokens=True, seed=0),
        "ar_cached": lambda: ar.generate(0, batch, as_tokens=True, seed=0),
    }
    times = alternate(sides, repeats)
    median = {side: statistics.median(values) for side, values in times.items()}
    text = ", ".join(f"{name} {value}" for name, value in sizes.items())
    return {
        "benchmark": "maskgit_speed",
        "status": "ok",
        "model": f"MaskGIT against ARTransformer, {text}",
        "data": f"{tokens} tokens of {codes} codes, batch {batch}",
        "metrics": {
            "speedup": median["ar_cached"] / median["maskgit"],
            **{f"seconds_{side}": value for side, value in median.items()},
        },
        "n": repeats,
        "protocol": {
            "maskgit": f"{steps} steps, cosine, by confidence, no guidance",
            "ar_cached": f"{tokens} passes with a key/value cache, temperature 1",
            "order": "alternating, medians, one round not counted",
            "all_seconds": times,
        },
        "environment": environment(),
        "seconds": round(sum(map(sum, times.values())), 2),
    }


def curve(path: Path, batch: int, repeats: int, sizes: dict[str, int]) -> dict[str, list[tuple[float, float]]]:
    """Draw seconds against tokens (8 steps), codes (256 tokens, 8 steps) and steps (256 tokens); returns the points."""
    series: dict[str, list[tuple[float, float]]] = {}
    counts = {("tokens", count): (count, CODES) for count in COUNTS}
    counts |= {("codes", codes): (256, codes) for codes in CODEBOOKS}
    for (axis, at), (tokens, codes) in counts.items():
        record = measure(tokens, batch, 8, repeats, sizes, codes)
        for side in ("maskgit", "ar_cached"):
            points = series.setdefault(f"{side}/seconds by {axis}", [])
            points.append((at, record["metrics"][f"seconds_{side}"]))
    maskgit, _ = models(256, CODES, **sizes)

    def generate(steps: int) -> Any:
        return maskgit.generate(0, batch, steps=steps, as_tokens=True, seed=0)

    sides: dict[str, Make] = {str(steps): partial(generate, steps) for steps in STEPS}
    for steps, values in alternate(sides, repeats).items():
        points = series.setdefault("maskgit/seconds by steps", [])
        points.append((int(steps), statistics.median(values)))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_picture_whole(path, line_plots(series, x_name="from"))
    return series


def square(text: str) -> int:
    """A count of tokens that fills a square grid."""
    count = int(text)
    side = math.isqrt(max(0, count))
    if count < 1 or side * side != count:
        near = f"{side**2} or {(side + 1) ** 2}" if side else "1 or 4"
        raise argparse.ArgumentTypeError(f"{count} tokens fill no square grid: take {near}")
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=square, default=256, help="a square number")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--width", type=int, default=192)
    parser.add_argument("--depth", type=int, default=5)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--curve", type=Path, help="draw the curves into this PNG instead")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sizes = {name: getattr(args, name) for name in ("width", "depth", "heads")}
    if args.curve:
        print(dump_json(curve(args.curve, args.batch, args.repeats, sizes), "null"))
        return
    result = measure(args.tokens, args.batch, args.steps, args.repeats, sizes)
    print(dump_json(result["metrics"], "null"))
    if args.out:
        write(result, args.out)


if __name__ == "__main__":
    run(main)
