"""Speed and extra memory of a codebook lookup against vector-quantize-pytorch, as ratios measured in one run.

    python benchmarks/vq_lookup.py --threads 2 --out benchmarks/results

16 images of 1,024 tokens of width 256, codebooks of 8,192 and 16,384 codes by running means; evaluation, and a training
step (forward, backward, new codebook). Both sides alternate, so that a change of the machine's load hits both; the
ratio is that of the medians. Extra memory is the peak of the resident set above what input and codebook take, in a
fresh process per side (Linux).
"""

import argparse
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from _record import environment, run, write
from torch import Tensor

from zoo.files.strict_json import dump_json

PACKAGE = "vector-quantize-pytorch"
CODES = (8192, 16384)
MODES = ("eval", "train")
SIDES = ("ours", "reference")
Step = Callable[[], Tensor]


def make(side: str, codes: int, mode: str, shape: tuple[int, int, int]) -> Step:
    """A function that quantizes the same vectors with the same codebook and returns the ids."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(shape, generator=generator)
    codebook = torch.randn(codes, shape[-1], generator=generator)
    quantize = ours(codebook, mode) if side == "ours" else reference(codebook, mode)
    if mode == "eval":

        def step() -> Tensor:
            with torch.no_grad():
                return quantize(z)[0]

        return step
    probe = torch.randn(shape, generator=generator)

    def train() -> Tensor:
        ids, vectors, loss, update = quantize(z.requires_grad_())
        torch.autograd.backward([vectors, loss], [probe, torch.ones_like(loss)])
        update()
        z.grad = None
        return ids

    return train


def ours(codebook: Tensor, mode: str) -> Callable:
    from zoo.quantizers.ema import EMAQuantizer

    quantizer = EMAQuantizer(codebook.shape[0], codebook.shape[1], decay=0.99).train(mode == "train")
    quantizer.codebook.copy_(codebook)
    quantizer.embed_avg.copy_(codebook.t())

    def quantize(z: Tensor) -> tuple:
        out = quantizer(z)
        return out.ids, out.vectors, out.loss, quantizer.update

    return quantize


def reference(codebook: Tensor, mode: str) -> Callable:
    from vector_quantize_pytorch import VectorQuantize

    codes, dim = codebook.shape
    # the same mathematics: straight-through gradients, no restarts
    quantizer = VectorQuantize(
        dim=dim, codebook_size=codes, decay=0.99, commitment_weight=0.25, rotation_trick=False,
        threshold_ema_dead_code=0,
    ).train(mode == "train")  # fmt: skip
    quantizer._codebook.embed.data.copy_(codebook)
    quantizer._codebook.embed_avg.copy_(codebook)
    quantizer._codebook.cluster_size.fill_(1.0)

    def quantize(z: Tensor) -> tuple:
        vectors, ids, loss = quantizer(z)
        return ids, vectors, loss.sum(), lambda: None  # the forward pass has updated the codebook

    return quantize


def extra_memory(side: str, codes: int, mode: str, shape: tuple[int, int, int]) -> float:
    """Peak resident set in MiB of two steps above what there was before them."""
    step = make(side, codes, mode, shape)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = resident("VmRSS")
    step()
    step()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1]) / 1024


def compare(codes: int, mode: str, shape: tuple[int, int, int], threads: int, repeats: int) -> dict:
    """Medians, extra memory, and the ratios."""
    memory = {}
    for side in SIDES:
        command = [sys.executable, __file__, "--only", side, "--codes", str(codes), "--mode", mode]
        command += ["--threads", str(threads), "--shape", *map(str, shape)]
        memory[side] = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    steps = {side: make(side, codes, mode, shape) for side in SIDES}
    ids = {side: step() for side, step in steps.items()}  # also the warm-up
    equal = (ids["ours"] == ids["reference"]).float().mean().item()
    times: dict[str, list[float]] = {side: [] for side in SIDES}
    for _ in range(repeats):
        for side, step in steps.items():
            start = time.perf_counter()
            step()
            times[side].append(time.perf_counter() - start)
    median = {side: statistics.median(values) for side, values in times.items()}
    print(f"{codes} codes, {mode}", {k: round(v, 3) for k, v in median.items()}, memory, flush=True)
    batch, tokens, dim = shape
    return {
        "benchmark": "vq_lookup",
        "status": "ok",
        "model": f"EMAQuantizer, {codes:,} codes, {mode}, against {PACKAGE}",
        "data": f"normal vectors, {batch}x{tokens} of width {dim}",
        "metrics": {
            "speedup": median["reference"] / median["ours"],
            "memory_ratio": memory["reference"] / memory["ours"],
            **{f"seconds_{side}": value for side, value in median.items()},
            **{f"extra_mib_{side}": value for side, value in memory.items()},
            "ids_equal": equal,
        },
        "n": repeats,
        "protocol": {
            "step": "no gradients" if mode == "eval" else "forward, backward, update of the codebook",
            "reference": f"{PACKAGE} {version(PACKAGE)}, rotation_trick=False, threshold_ema_dead_code=0",
            "all_seconds": times,
        },
        "environment": environment(),
        "seconds": round(sum(map(sum, times.values())), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--shape", type=int, nargs=3, default=(16, 1024, 256), help="images, tokens, width")
    parser.add_argument("--codes", type=int, help="only this many")
    parser.add_argument("--mode", choices=MODES, help="only this one")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=SIDES, help="print the extra memory of one side")
    parser.add_argument("--out", type=Path, help="folder for one JSON per case")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape = tuple(args.shape)
    if args.only:
        print(extra_memory(args.only, args.codes, args.mode, shape))
        return
    for codes in [args.codes] if args.codes else CODES:
        for mode in [args.mode] if args.mode else MODES:
            result = compare(codes, mode, shape, args.threads, args.repeats)
            if args.out:
                write(result, args.out / f"vq_lookup_{codes}_{mode}.json")
            else:
                print(dump_json(result["metrics"], "null"))


if __name__ == "__main__":
    run(main)
