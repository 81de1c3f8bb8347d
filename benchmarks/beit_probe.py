"""Probes of BEiT: masked-token accuracy against frequency baselines, linear probes, fine-tuning against scratch.

    python benchmarks/beit_probe.py --model beit_emoji --out benchmarks/results/beit_emoji_probe.json

The data is EmojiData (training, validation and test concepts are disjoint); accuracies are of the test split, choices
(block of the probe) are made on the validation split. Every number has a mean and a standard deviation over seeds.
"""

import argparse
import random
import statistics
import sys
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from _record import environment, run, write
from torch import Tensor
from torch.utils.data import DataLoader

from zoo.losses.mixing import mark_correct
from zoo.models.beit import BEiT
from zoo.models.beit_classifier import BEiTClassifier
from zoo.optim import Optim, cosine

SHARED = ("image_size", "patch_size", "width", "depth", "heads", "mlp_ratio", "layer_scale", "absolute_positions")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="beit_emoji", help="registry NAME or ckpt:PATH of a BEiT")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--masks", type=int, default=8, help="masks per image for the masked-token accuracy")
    parser.add_argument("--probe-steps", type=int, default=500)
    parser.add_argument("--epochs", type=int, default=6, help="of fine-tuning; 0 leaves it out")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=3e-3, help="of fine-tuning and of training from scratch")
    parser.add_argument("--layer-decay", type=float, default=0.9, help="of fine-tuning")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)

    from datamodules import EmojiData
    from zoo.registry import model_from

    start = time.perf_counter()
    beit = model_from(options.model).eval()
    data = EmojiData(
        image_size=beit.image_size,
        token_image_size=beit.view_size[0],
        batch_size=options.batch_size,
        train_transform="shift_scale",
        seed=0,
    )
    data.prepare_data()
    data.setup("fit")
    views = {split: list(loader(data.view(split), options.batch_size)) for split in ("train", "val", "test")}

    metrics = masked_token_accuracy(beit, views["train"], views["test"], options.masks)
    report(metrics)
    metrics |= linear_probes(beit, views, data.num_classes, options)
    if options.epochs:
        metrics |= fine_tuning(beit, data, views["test"], options)
    record = {
        "benchmark": "beit_probe",
        "status": "ok",
        "model": options.model,
        "data": "EmojiData, test split",
        "metrics": metrics,
        "n": sum(len(b["image"]) for b in views["test"]),
        "protocol": {k: v for k, v in vars(options).items() if k not in ("model", "out")}
        | {"train_transform": "shift_scale", "label": "category", "std": "over seeds"},
        "environment": environment(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    if options.out:
        write(record, options.out)
        print(f"written to {options.out}")
    return record


def loader(dataset: Any, batch_size: int) -> DataLoader:
    from datamodules.base import collate

    return DataLoader(dataset, batch_size, collate_fn=collate)


# ---------------------------------------------------------------------- masked tokens


def frequency_baselines(train_ids: Tensor, ids: Tensor, hidden: Tensor) -> dict[str, float]:
    """Accuracy at hidden positions of always answering the most frequent token of the training set.

    Args:
        train_ids: ``m n`` tokens of the training images.
        ids: ``b n`` tokens to be predicted.
        hidden: ``b n``, or ``r b n`` for several masks, True where the prediction counts.

    Returns:
        ``frequency_baseline``, one answer for all positions, and ``position_baseline``, one for each position.
    """
    everywhere = train_ids.flatten().mode().values.expand(ids.shape[1])
    answers = {"frequency_baseline": everywhere, "position_baseline": train_ids.mode(0).values}
    return {name: (ids == answer).expand_as(hidden)[hidden].float().mean().item() for name, answer in answers.items()}


@torch.no_grad()
def masked_token_accuracy(beit: BEiT, train: Iterable[dict], test: Iterable[dict], masks: int) -> dict[str, float]:
    """Accuracy and cross entropy of what is hidden, over several fixed masks per image, and the baselines."""
    train_ids = torch.cat([beit.tokenize(batch) for batch in train])
    count, right = 0, 0.0
    nats, ids, hidden = 0.0, [], []
    for batch in test:
        ids.append(beit.tokenize(batch))
        drawn = [
            torch.stack([beit.draw_mask(random.Random(f"{i} {r}")) for i in batch["index"].tolist()])
            for r in range(masks)
        ]
        every = torch.ones(masks, *ids[-1].shape, dtype=torch.bool)  # of a sequence all tokens are predicted
        counted = torch.stack(drawn).flatten(2) if beit.vit.sequence is None else every
        hidden.append(counted)
        for mask, some in zip(drawn, counted, strict=True):
            n = int(some.sum())
            terms = beit.losses(batch | {"ids": ids[-1], "mask": mask})
            right, count = right + terms["accuracy"].item() * n, count + n
            nats += terms["loss"].item() * n
    baselines = frequency_baselines(train_ids, torch.cat(ids), torch.cat(hidden, dim=1))
    accuracy = right / count
    return {
        "masked_accuracy": accuracy,
        **baselines,
        "times_frequency_baseline": accuracy / max(baselines["frequency_baseline"], 1e-9),
        "masked_loss": nats / count,
    }


# ---------------------------------------------------------------------- linear probe


@torch.no_grad()
def features(beit: BEiT, batches: list[dict]) -> tuple[Tensor, Tensor]:
    """``depth m 2d`` features [class token, mean of patches] of all blocks, and the labels."""
    per_batch = []
    for batch in batches:
        outputs = beit.vit.block_outputs(beit.to_network_range(batch["image"]), list(range(beit.vit.depth)))
        per_batch.append(torch.stack([torch.cat([y[:, 0], y[:, 1:].mean(1)], -1) for y in outputs]))
    return torch.cat(per_batch, dim=1), torch.cat([batch["label"] for batch in batches])


def linear_probes(beit: BEiT, views: dict, num_classes: int, options: Any) -> dict[str, float]:
    """One linear layer per block (AdamW, lr 4e-3, weight decay 1e-4 as the official script), frozen features.

    The block is chosen on the validation split. The same on an untrained network of the same size says what the
    architecture alone gives.
    """
    found: dict[str, list[float]] = {"probe": [], "probe_untrained": []}
    blocks = []
    for seed in range(options.seeds):
        for name in found:
            torch.manual_seed(seed)
            network = beit if name == "probe" else BEiT(**beit.init_args() | {"optim": Optim()}).eval()
            x, y = zip(*(features(network, views[s]) for s in ("train", "val", "test")), strict=True)
            accuracies = probe(x, y, num_classes, options.probe_steps, seed)
            best = int(accuracies["val"].argmax())
            found[name].append(accuracies["test"][best].item())
            if name == "probe":
                blocks.append(best + 1)
            print(f"seed {seed} {name}: block {best + 1}, test accuracy {found[name][-1]:.3f}", flush=True)
    return summary(found) | {"probe_block": statistics.median_low(blocks)}


def probe(x: tuple[Tensor, ...], y: tuple[Tensor, ...], num_classes: int, steps: int, seed: int) -> dict[str, Tensor]:
    """Train all blocks' probes at once; accuracy of each block on the validation and the test split."""
    generator = torch.Generator().manual_seed(seed)
    depth, count, width = x[0].shape
    weight = (0.01 * torch.randn(depth, width, num_classes, generator=generator)).requires_grad_()
    bias = torch.zeros(depth, 1, num_classes, requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, weight_decay=1e-4)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = cosine(step, 4e-3, 0.0, steps)
        rows = torch.randint(count, (min(256, count),), generator=generator)
        logits = torch.baddbmm(bias, x[0][:, rows], weight)
        loss = F.cross_entropy(logits.flatten(0, 1), y[0][rows].repeat(depth)) * depth
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return {
            split: mark_correct(torch.baddbmm(bias, x[i], weight), y[i].expand(depth, -1)).mean(1)
            for i, split in ((1, "val"), (2, "test"))
        }


# ---------------------------------------------------------------------- fine-tuning


def fine_tuning(beit: BEiT, data: Any, test: list[dict], options: Any) -> dict[str, float]:
    """The same classifier from BEiT's weights and from scratch: same steps, rate and augmentation."""
    args = beit.init_args()
    args = {k: args[k] for k in (*SHARED, "normalisation")} | {
        "relative_positions": "none" if args["relative_positions"] == "none" else "per_block",
        "num_classes": data.num_classes,
    }
    found: dict[str, list[float]] = {"finetune": [], "scratch": []}
    for seed in range(options.seeds):
        for name in found:
            pl.seed_everything(seed, verbose=False)
            pretrained = name == "finetune"
            optim = Optim(
                lr=options.lr,
                min_lr=1e-6,
                warmup_steps=len(data.train_dataloader()),
                layer_decay=options.layer_decay if pretrained else 1.0,
            )
            model = BEiTClassifier(**args, optim=optim, weights=options.model if pretrained else None)
            trainer = pl.Trainer(
                max_epochs=options.epochs,
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=sys.stderr.isatty(),
                gradient_clip_val=1.0,
            )
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", ".*does not have many workers.*")
                trainer.fit(model, data.train_dataloader())
            found[name].append(accuracy(model.eval(), test))
            print(f"seed {seed} {name}: test accuracy {found[name][-1]:.3f}", flush=True)
    return summary(found)


@torch.no_grad()
def accuracy(model: BEiTClassifier, batches: list[dict]) -> float:
    return torch.cat([mark_correct(model(b["image"]), b["label"]) for b in batches]).mean().item()


def summary(found: dict[str, list[float]]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    mean = {f"{name}_accuracy": statistics.mean(values) for name, values in found.items()}
    std = {f"{name}_std": statistics.stdev(v) if len(v) > 1 else 0.0 for name, v in found.items()}
    report(mean | std)
    return mean | std


def report(metrics: dict[str, float]) -> None:
    print("  ".join(f"{name} {value:.4f}" for name, value in metrics.items()), flush=True)


if __name__ == "__main__":
    run(main)
