"""Speed and memory of ours against the reference packages, as ratios measured in one run.

    python benchmarks/throughput.py dvae --threads 2 --out benchmarks/results/throughput_dvae.json
    python benchmarks/throughput.py beit --threads 2 --out benchmarks/results/throughput_beit.json

Ours and the reference alternate, so that a change of the machine's load hits both; the ratio is that of the medians.
Peak memory is the resident set of a fresh process per side.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
import torch.nn.functional as F
from _record import environment, write
from torch import Tensor

Step = Callable[[], Tensor]


def dvae_ours(size: int, batch: int) -> Step:
    """Encode and decode one batch of images in [0, 1] with the published architecture."""
    import zoo

    torch.manual_seed(0)
    model = zoo.create_model("dvae_openai", image_size=size).eval()
    images = torch.rand(batch, 3, size, size)

    def step() -> Tensor:
        with torch.inference_mode():
            tokens = model.encode(images)
            model.decode(tokens)
            return tokens.ids

    return step


def dvae_reference(size: int, batch: int) -> Step:
    """The same with OpenAI's package, written as in its notebook, and with the same weights."""
    import dall_e

    import zoo

    torch.manual_seed(0)
    ours = zoo.create_model("dvae_openai", image_size=size)
    images = torch.rand(batch, 3, size, size)
    encoder, decoder = dall_e.Encoder().eval(), dall_e.Decoder().eval()
    encoder.load_state_dict(ours.encoder.state_dict())
    decoder.load_state_dict(ours.decoder.state_dict())
    del ours

    def step() -> Tensor:
        with torch.inference_mode():
            ids = encoder(dall_e.map_pixels(images)).argmax(1)
            one_hot = F.one_hot(ids, encoder.vocab_size).permute(0, 3, 1, 2).float()
            dall_e.unmap_pixels(torch.sigmoid(decoder(one_hot).float()[:, :3]))
            return ids.flatten(1)

    return step


def beit_ours(size: int, batch: int) -> Step:
    """One masked-image-modelling step of BEiT-base on given ids: forward, backward, AdamW."""
    from zoo.nn.beit_vit import BeitViT

    torch.manual_seed(0)
    model = BeitViT(size, vocab_size=8192, drop_path=0.1)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"].flatten(1)
        return F.cross_entropy(model.masked_logits(2 * inputs["image"] - 1, mask), inputs["ids"][mask])

    return training_step(model, loss, mim_batch(size, batch))


def beit_reference(size: int, batch: int) -> Step:
    """The same with transformers' BeitForMaskedImageModeling."""
    from transformers import BeitConfig, BeitForMaskedImageModeling

    torch.manual_seed(0)
    config = BeitConfig(
        image_size=size, use_shared_relative_position_bias=True, use_mask_token=True, layer_norm_eps=1e-6
    )
    model = BeitForMaskedImageModeling(config)

    def loss(inputs: dict[str, Tensor]) -> Tensor:
        mask = inputs["mask"].flatten(1)
        return model(2 * inputs["image"] - 1, bool_masked_pos=mask, labels=inputs["ids"][mask]).loss

    return training_step(model, loss, mim_batch(size, batch))


def mim_batch(size: int, batch: int) -> dict[str, Tensor]:
    """Random images and ids, and masks of 75 patches in 196 as in pre-training (same share at other sizes)."""
    grid = size // 16
    generator = torch.Generator().manual_seed(1)
    order = torch.rand(batch, grid * grid, generator=generator).argsort(1)
    return {
        "image": torch.rand(batch, 3, size, size, generator=generator),
        "ids": torch.randint(8192, (batch, grid * grid), generator=generator),
        "mask": (order < round(grid * grid * 75 / 196)).unflatten(1, (grid, grid)),
    }


def training_step(model: torch.nn.Module, loss_of: Callable[[dict], Tensor], inputs: dict[str, Tensor]) -> Step:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)

    def step() -> Tensor:
        loss = loss_of(inputs)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


CASES = {
    "dvae": (dvae_ours, dvae_reference, "DALL-E", {"size": 256, "batch": 4}),
    "beit": (beit_ours, beit_reference, "transformers", {"size": 224, "batch": 8}),
}


def peak_memory(case: str, side: str, threads: int, size: int, batch: int) -> float:
    """Peak resident set in MiB of a fresh process that builds one side and runs it twice."""
    command = [sys.executable, __file__, case, "--only", side, "--threads", str(threads)]
    command += ["--size", str(size), "--batch", str(batch)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(output.split()[-1])


def compare(case: str, threads: int, size: int, batch: int, repeats: int) -> dict:
    """Medians, their ratio and both peaks."""
    make_ours, make_reference, package, _ = CASES[case]
    memory = {side: peak_memory(case, side, threads, size, batch) for side in ("ours", "reference")}
    steps = {"ours": make_ours(size, batch), "reference": make_reference(size, batch)}
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    for repeat in range(repeats + 1):  # the first is a warm-up
        outputs = {}
        for side, step in steps.items():
            start = time.perf_counter()
            outputs[side] = step()
            if repeat:
                times[side].append(time.perf_counter() - start)
        print(f"{case} {repeat}/{repeats}", {k: round(v[-1], 3) for k, v in times.items() if v}, flush=True)
        if case == "dvae" and not torch.equal(outputs["ours"], outputs["reference"]):
            raise AssertionError("the ids differ between the two sides")
    median = {side: statistics.median(values) for side, values in times.items()}
    return {
        "benchmark": "throughput",
        "status": "ok",
        "model": f"{case} against {package}",
        "data": f"random images, {size} px, batch {batch}",
        "metrics": {
            "speedup": median["reference"] / median["ours"],
            **{f"seconds_{side}": value for side, value in median.items()},
            **{f"peak_mib_{side}": value for side, value in memory.items()},
        },
        "n": repeats,
        "protocol": {
            "step": (CASES[case][0].__doc__ or "").strip(),
            "reference": f"{package} {version(package)}",
            "ids": "identical" if case == "dvae" else "given",
            "all_seconds": times,
        },
        "environment": environment(),
        "seconds": round(sum(map(sum, times.values())), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("case", choices=CASES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--size", type=int)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", choices=["ours", "reference"], help="run one side twice and print its peak memory")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    size = args.size or CASES[args.case][3]["size"]
    batch = args.batch or CASES[args.case][3]["batch"]
    if args.only:
        step = CASES[args.case][0 if args.only == "ours" else 1](size, batch)
        step()
        step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    result = compare(args.case, args.threads, size, batch, args.repeats)
    print(json.dumps(result["metrics"], indent=2))
    if args.out:
        write(result, args.out)


if __name__ == "__main__":
    main()
