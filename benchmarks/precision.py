"""Processor seconds per training step in bfloat16 and in float32, as a ratio measured in one run.

    python benchmarks/precision.py --model blip2_stage1_emoji --batch_size 32
    ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 python benchmarks/precision.py --model blip2_stage1_emoji

The second command holds torch to a processor without instructions for bfloat16. Steps in both precisions alternate on
one thread, and processor time is counted, so other work on the machine matters little; medians are printed.
"""

import argparse
import statistics
import time

import torch

from datamodules import EmojiData
from zoo.cli.precision import computes_in_bfloat16
from zoo.registry import create_model


def seconds(model: str, batch_size: int, steps: int) -> dict[str, float]:
    """Median processor seconds of a step, by precision.

    Args:
        model: a registered name of a model that trains on captions.
        batch_size: images per step.
        steps: measured in each precision, behind one that is not.
    """
    torch.manual_seed(0)
    network = create_model(model).train()
    data = EmojiData(image_size=network.image_size, batch_size=batch_size)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-6)
    found: dict[str, list[float]] = {"bf16-mixed": [], "32-true": []}
    for _ in range(steps + 1):
        for precision, measured in found.items():
            start = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                loss = network.losses(dict(batch))["loss"]
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            measured.append(time.process_time() - start)
    return {precision: statistics.median(measured[1:]) for precision, measured in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="blip2_stage1_emoji")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = seconds(options.model, options.batch_size, options.steps)
    has = "with" if computes_in_bfloat16("cpu") else "without"
    mixed, full = found["bf16-mixed"], found["32-true"]
    print(f"{options.model}, batch {options.batch_size}, {has} bfloat16 instructions: ", end="")
    print(f"bf16-mixed {mixed:.2f} s, 32-true {full:.2f} s, ratio {mixed / full:.2f}")


if __name__ == "__main__":
    main()
