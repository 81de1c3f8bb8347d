"""Write down what the code does, before the redesign: `PYTHONPATH=. python tests/behaviour/make_fixtures.py`.

The data in tests/fixtures/before_redesign were made with the code of commit 4a0f113. They say what must stay as it was,
so this is not to be run again to make a red test green: a test that fails has found a change of behaviour. It is here
to show how the data came about.
"""

import os
import shutil
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import observed
import torch
from cases import CHECKPOINTS, VARIANTS, WITH_OPTIMIZER
from safetensors.torch import save_file
from test_shipped_weights_as_before import outputs

import zoo

FOLDER = observed.FOLDER
#: run -> what `lightning fit` was asked for, beside data and trainer
RUNS = {
    "dvae": [
        "--model=DVAE", "--model.image_size=32", "--model.width=4", "--model.blocks=1", "--model.groups=3",
        "--model.vocab_size=16", "--model.code_width=4", "--model.optim.lr=0.01", "--model.optim.betas=[0.8,0.9]",
        "--model.init_args.optim.schedule=constant", "--model.optim.decay=all",
    ],
    "vqgan": [
        "--model=VQGAN", "--model.image_size=32", "--model.width=4", "--model.norm_groups=2",
        "--model.multipliers=[1,2]", "--model.blocks=1", "--model.attention=[]", "--model.mid_attention=false",
        "--model.z_channels=4", "--model.vocab_size=16", "--model.code_width=4", "--model.quantizer=ema",
        "--model.codebook_decay=0.9", "--model.codebook_init=kmeans", "--model.perceptual=none",
        "--model.disc_width=4", "--model.disc_layers=1", "--model.disc_start=1", "--model.disc_weight=0.2",
        "--model.optim.lr=0.002",
    ],
    "maskgit": [
        "--model=MaskGIT", "--model.tokenizer=dvae_tiny:random", "--model.num_classes=3", "--model.width=16",
        "--model.depth=1", "--model.heads=2", "--model.optim.warmup_steps=2",
        "--trainer.callbacks+=EMA", "--trainer.callbacks.decay=0.9",
    ],
    "beit": [
        "--model=BEiTClassifier", "--model.image_size=32", "--model.patch_size=8", "--model.width=16",
        "--model.depth=1", "--model.heads=2", "--model.num_classes=3", "--model.optim.layer_decay=0.7",
        "--model.optim.weight_decay=0.1", "--trainer.gradient_clip_val=1.0",
    ],
}  # fmt: skip
DATA = [
    "--data=ImageFolderData", "--data.root=images", "--data.image_size=32", "--data.batch_size=4",
    "--data.val_fraction=0.5", "--data.labels=true", "--data.train_transform=none", "--data.eval_transform=squash",
]  # fmt: skip
TRAINER = [
    "--trainer.accelerator=cpu", "--trainer.max_steps=1", "--trainer.limit_train_batches=1",
    "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false",
]  # fmt: skip


def names_and_recipes() -> None:
    """Names, lists, configurations of recipes."""
    observed.write("names.json", observed.public_names())
    lists = {
        "list": observed.printed("list").splitlines(),
        "recipes": observed.printed("recipes").splitlines(),
        "list_models": zoo.list_models(),
        "with_weights": zoo.list_models(weights=True),
        **{decodes: zoo.list_models("*_emoji", decodes=decodes) for decodes in ("pixels", "embedding")},
    }
    observed.write("lists.json", lists)
    observed.write("recipes.json.gz", {name: observed.parsed(path) for name, path in observed.recipes().items()})
    observed.write("presets.json.gz", {name: observed.preset(name) for name in zoo.list_models()})


def shipped_weights() -> None:
    """What the files in the package are, and what their models make of two pictures."""
    facts, tensors = {}, {}
    for name in zoo.list_models(weights=True):
        found, made = outputs(name)
        facts[name] = found
        tensors |= {f"{name}.{key}": value.contiguous() for key, value in made.items()}
    observed.write("shipped.json", facts)
    save_file(tensors, FOLDER / "shipped.safetensors")


def numbers(work: Path) -> None:
    """Losses, tokens, samples and texts of all tiny presets and of their variants."""
    cases: dict[str, tuple[str, dict[str, Any]]] = {name: (name, {}) for name in zoo.list_models("*_tiny")} | VARIANTS
    found = {}
    for name, (preset, overrides) in cases.items():
        torch.manual_seed(0)
        model = zoo.create_model(preset, **overrides)
        init_args = model.init_args()
        found[name] = {"preset": preset, "init_args": init_args, "initial": observed.initial(model)}
        found[name] |= observed.numbers(preset, init_args, work)
    observed.write("numbers.json.gz", found)


def checkpoints(work: Path) -> None:
    """Checkpoints of Python runs of one step; those with an optimizer go on for a second step."""
    facts = {}
    for name, (preset, overrides) in CHECKPOINTS.items():
        optimizer = name in WITH_OPTIMIZER
        model = observed.fill(zoo.create_model(preset, **overrides, optim=observed.steady(preset)))
        trainer = observed.trained(model, work, 1)
        path = work / f"{name}.ckpt"
        trainer.save_checkpoint(path, weights_only=not optimizer)
        observed.pack(path, FOLDER / "checkpoints" / path.name)
        again = zoo.create_model(f"ckpt:{path}")
        observed.fill_tokenizers(again)
        facts[name] = {"eval": observed.losses(again, False)}
        if optimizer:
            again = zoo.create_model(f"ckpt:{path}")
            observed.fill_tokenizers(again)
            observed.trained(again, work, 2, path)
            facts[name]["second_step"] = observed.by_part(again.state_dict())
    observed.write("checkpoints.json", facts)


def runs(work: Path) -> None:
    """Runs of the command line, and the token shards that one of them wrote."""
    observed.write_pictures(work / "images")
    for name, model in RUNS.items():
        observed.printed("fit", *model, *DATA, *TRAINER, f"--trainer.default_root_dir=runs/{name}")
        kept = FOLDER / "command_line" / name
        kept.mkdir(parents=True, exist_ok=True)
        observed.pack(work / "runs" / name / "last.ckpt", kept / "last.ckpt")
        shutil.copy(work / "runs" / name / "config.yaml", kept)
    for split in ("train", "val"):
        observed.printed(
            "predict", "--config", "runs/dvae/config.yaml", "--ckpt_path", "runs/dvae/last.ckpt",
            "--trainer.callbacks+=TokenDump", "--trainer.callbacks.out_dir=tokens",
            "--trainer.callbacks.with_images=true", f"--trainer.callbacks.split={split}",
            "--trainer.callbacks.model=ckpt:runs/dvae/last.ckpt",
        )  # fmt: skip
    shutil.copytree(work / "tokens", FOLDER / "tokens", dirs_exist_ok=True, ignore=shutil.ignore_patterns("*lock*"))


def main() -> None:
    """Write everything."""
    if FOLDER.exists():
        sys.exit(f"{FOLDER} is there already, and stays: see the docstring")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    work = Path(tempfile.mkdtemp())
    os.chdir(work)  # the folders of runs are relative
    for step in (
        names_and_recipes,
        shipped_weights,
        lambda: numbers(work),
        lambda: checkpoints(work),
        lambda: runs(work),
    ):
        step()
    shutil.rmtree(work)


if __name__ == "__main__":
    main()
