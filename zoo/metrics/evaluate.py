"""Evaluate a tokenizer on a data module without a trainer: the library behind ``benchmarks/rfid.py``."""

import time
from typing import Any, Literal

import torch
from lightning.pytorch.core.mixins import HyperparametersMixin
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler

from zoo.init_args import to_plain_data
from zoo.metrics.entries import first_entries
from zoo.metrics.reconstruction import ReconstructionReport, reconstruct_batch
from zoo.tokens import NotInvertible
from zoo.tokens.abilities import Views

DTYPES = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


def evaluate(
    model: Any,
    datamodule: Any,
    split: Literal["train", "val", "test"] = "test",
    num_images: int | None = None,
    device: torch.device | str = "cpu",
    precision: Literal["32", "bf16", "16"] = "32",
    progress: bool = False,
    **report: Any,
) -> dict[str, Any]:
    """Reconstruct the images of one split and measure what is left of them.

    Args:
        model: decodes to pixels.
        datamodule: its batches have ``image``. The images of a split are seen once each, in order and without
            augmentation: those of ``view(split)``, or of ``{split}_dataloader`` where there are no views.
        split: which images.
        num_images: only the first so many; None takes all.
        device: where to run.
        precision: of the decoder; ids, and metrics, are always computed in float32 and float64.
        progress: show a progress bar.
        report: further arguments of :class:`ReconstructionReport`.

    Returns:
        ``metrics``, ``protocol`` and ``seconds``.

    Raises:
        NotInvertible: where the model does not decode to pixels.
        ValueError: where the split has fewer images than asked for, fewer than two are asked for, or the loader of a
            data module without views shuffles them or leaves some out.
    """
    if model.spec is None or model.spec.decodes != "pixels":
        raise NotInvertible(f"{type(model).__name__} does not decode to pixels, so there is nothing to compare")
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, got {precision!r}")
    if num_images is not None and num_images < 2:
        raise ValueError(f"num_images must be at least 2, got {num_images}: leave it out to take all")
    device = torch.device(device)
    batches = _loader(datamodule, split)
    measured = ReconstructionReport(model.spec, **report).to(device)
    model = model.to(device).eval()
    if progress:
        from tqdm import tqdm

        batches = tqdm(batches, desc=f"{split} images", unit="batch", leave=False)
    start = time.perf_counter()
    with torch.inference_mode():
        for batch in batches:
            batch = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in batch.items()}
            if num_images is not None:
                batch = first_entries(batch, num_images - measured.num_images)
            with torch.autocast(device.type, dtype=DTYPES[precision], enabled=DTYPES[precision] is not None):
                originals, reconstructions, ids = reconstruct_batch(model, batch)
            measured.update(originals, reconstructions, ids)
            if measured.num_images == num_images:
                break
        if num_images is not None and measured.num_images < num_images:
            raise ValueError(f"the {split} split has {measured.num_images} images, not {num_images}: ask for fewer")
        if measured.num_images < 2:
            raise ValueError(f"the {split} split has {measured.num_images} images: there is nothing to measure")
        metrics = measured.compute()
    seconds = time.perf_counter() - start
    facts = {"split": split, "view": "all images in order, crop and resize of the data module, no augmentation"}
    if num_images is not None:
        facts["view"] = facts["view"].replace("all", "the first")
    protocol = facts | {"data": data_facts(datamodule)} | measured.protocol()
    return {"metrics": metrics, "protocol": protocol, "seconds": seconds}


def data_facts(datamodule: Any) -> dict[str, Any]:
    """Class and settings of a data module, for the protocol."""
    settings = datamodule.hparams if isinstance(datamodule, HyperparametersMixin) else {}
    return {"class": type(datamodule).__name__, **to_plain_data(dict(settings))}


def set_up(datamodule: Any, split: str, name: str) -> None:
    """Make a split of a data module ready.

    Args:
        datamodule: of Lightning.
        split: ``train``, ``val`` or ``test``.
        name: of the setting that says which, for the message.

    Raises:
        ValueError: for another split.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f"{name} must be train, val or test, got {split!r}")
    datamodule.prepare_data()
    datamodule.setup({"train": "fit", "val": "validate", "test": "test"}[split])


def _loader(datamodule: Any, split: str) -> Any:
    """A loader of fixed views; that of ``train`` shuffles, augments and drops the last batch."""
    set_up(datamodule, split, "split")
    if isinstance(datamodule, Views):
        return datamodule.view_loader(split)
    loader = getattr(datamodule, f"{split}_dataloader")()
    if isinstance(loader, DataLoader) and (isinstance(loader.sampler, RandomSampler) or loader.drop_last):
        raise ValueError(
            f"the {split} loader of {type(datamodule).__name__} shuffles its images or drops the last ones, so the "
            "numbers would depend on chance: measure another split, or let a ZooDataModule give views of it"
        )
    return loader
