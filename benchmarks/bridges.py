"""Bridges compared: the same images, captions, language model, steps and batches; only what stands between differs.

    python benchmarks/bridges.py --steps 300 --out benchmarks/results

Every bridge is trained from its random start on ``EmojiData`` and measured on held-out concepts and on the other
drawing style: CIDEr-D of its captions, and, on the style of training, how often the likelihood of the language model
finds the right caption. ``blind`` and ``blind_lora`` see nothing: what is reached by a soft prompt alone, and by a
language model that is itself fine-tuned on the captions. Records and captions go to the folder; finished bridges are
not trained again.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import vision_language
from _record import run, write

from zoo.nn.qformer_sizes import QFormerSizes

COMMON = {"language_model": "smollm2_135m", "language_dtype": "bfloat16", "image_size": 128, "vision_cache": 2000}
SIZES = QFormerSizes(queries=8, width=384, depth=4, mlp_width=1536)
QUERIES = COMMON | {
    "prompt": "This emoji shows",
    "max_text_tokens": 24,
    "bridge_lr": 0.3,  # of a Q-Former; the linear layers learn at the whole rate
}
PATCHES = COMMON | {"vision": "lite0", "max_length": 128}
#: bridge -> preset and its arguments
BRIDGES: dict[str, tuple[str, dict[str, Any]]] = {
    "blind": ("blip2_stage2_emoji", QUERIES | {"vision": "blind", "qformer": replace(SIZES, depth=2)}),
    "blind_lora": (
        "llava_emoji", PATCHES | {"vision": "blind", "tuning": "lora", "lora": {"rank": 16, "alpha": 32}},
    ),
    "linear": ("llava_emoji", PATCHES | {"projector_depth": 1}),
    "mlp": ("llava_emoji", PATCHES | {"projector_depth": 2}),
    "q_former": ("blip2_stage2_emoji", QUERIES | {"vision": "lite0", "qformer": SIZES}),
    "joint_resampler": (
        "blip2_stage2_emoji",
        QUERIES | {"vision": "lite0", "qformer": replace(SIZES, cross_every=1, mixing="joint", norm="pre")},
    ),
    "cross_only": (
        "blip2_stage2_emoji",
        QUERIES | {"vision": "lite0", "qformer": replace(SIZES, cross_every=1, mixing="cross_only")},
    ),
}  # fmt: skip
STYLES = ("twemoji", "openmoji")


def train(name: str, steps: int, batch: int, lr: float, folder: Path, language_model: str, seed: int) -> Path:
    """Train a bridge; returns its checkpoint."""
    import lightning.pytorch as pl
    from lightning.pytorch.loggers import CSVLogger

    import zoo
    from datamodules import EmojiData

    checkpoint = folder / f"{name}.ckpt"
    if checkpoint.exists():
        return checkpoint
    pl.seed_everything(seed, verbose=False)
    preset, settings = BRIDGES[name]
    optim = zoo.Optim(lr=lr, min_lr=lr / 100, betas=(0.9, 0.98), weight_decay=0.0, warmup_steps=30)
    model = zoo.create_model(preset, **(settings | {"optim": optim, "language_model": language_model}))
    trainer = pl.Trainer(
        max_steps=steps, logger=CSVLogger(folder, name=name, version=""), gradient_clip_val=1.0, accelerator="auto",
        devices=1, enable_checkpointing=False, log_every_n_steps=10, limit_val_batches=0, enable_model_summary=False,
    )  # fmt: skip
    data = EmojiData(image_size=settings["image_size"], batch_size=batch, train_transform="none", seed=seed)
    trainer.fit(model, data)
    trainer.save_checkpoint(checkpoint)
    return checkpoint


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bridges", nargs="*", default=list(BRIDGES), choices=list(BRIDGES))
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--split", default="test", choices=("val", "test"))
    parser.add_argument("--num-images", type=int)
    parser.add_argument("--language-model", default="smollm2_135m")
    parser.add_argument("--runs", type=Path, default=Path("runs/bridges"), help="checkpoints and logs")
    parser.add_argument("--out", type=Path, help="folder of the records")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    records = []
    for name in options.bridges:
        checkpoint = train(
            name, options.steps, options.batch, options.lr, options.runs, options.language_model, options.seed
        )
        for style in STYLES:
            target = options.out / f"bridge_{name}_{style}.json" if options.out else None
            if target is not None and target.exists():
                records.append(json.loads(target.read_text()))
                continue
            size = BRIDGES[name][1]["image_size"]
            command = ["--model", f"ckpt:{checkpoint}", "--data", "EmojiData", "--split", options.split]
            command += ["--data.style", style, "--data.image_size", str(size)]
            command += ["--num-images", str(options.num_images)] if options.num_images else []
            if style != STYLES[0] or BRIDGES[name][1]["vision"] == "blind":
                command += ["--no-likelihood"]  # each image with each caption takes minutes; to the blind all are alike
            record = vision_language.main(command)
            training = {"steps": options.steps, "batch": options.batch, "lr": options.lr, "seed": options.seed}
            record |= {"benchmark": "bridges", "model": f"{name}, {options.steps} steps"}
            record["protocol"] |= {"training": training}
            if target is not None:
                write(record, target)
            records.append(record)
    for record in records:
        values = {k: round(v, 3) for k, v in record["metrics"].items() if "r@1" in k or k in ("cider_d", "trainable")}
        print(f"{record['model']:32}{record['data']:40}{values}")
    return records


if __name__ == "__main__":
    run(main)
