"""Write the tokens of a data set to disk, once, for second stages that train on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from zoo.files.lock import FolderLock
from zoo.metrics.extractors import quantise
from zoo.module import ZooModule
from zoo.tokens import Tokens, TokenSpec
from zoo.tokens.abilities import KnowsClasses, PredictsSplit
from zoo.tokens.precision import ID_PRECISION
from zoo.tokens.shards import HEADER, TEXTS, make_header, write_header, write_shard


class TokenDump(BasePredictionWriter):
    """Turn ``lightning predict`` into token shards that ``TokenData`` reads, in ``out_dir/SPLIT``.

    Each rank writes its own shards as soon as they are full; predictions are not collected in memory. Beside the ids
    stands which image they are of: its ``index`` in the data set and, where the data module says so, its ``file`` and
    ``image_id``. The header, written after all shards, names the tokenizer by the fingerprint of its weights.

    Args:
        out_dir: folder of all splits.
        split: the images to go through; sets ``predict_split`` of the data module.
        with_images: store the images as well, for second stages that read pixels too.
        shard_size: images per shard.
        model: registry name or checkpoint of the tokenizer, for the reader of the header.
        overwrite: replace the shards that are there.
    """

    def __init__(
        self,
        out_dir: str,
        split: str = "train",
        with_images: bool = False,
        shard_size: int = 4096,
        model: str = "",
        overwrite: bool = False,
    ):
        super().__init__("batch")
        if shard_size < 1:
            raise ValueError(f"shard_size must be at least 1, got {shard_size}")
        self.folder = Path(out_dir) / split
        self.split, self.with_images, self.shard_size = split, with_images, shard_size
        self.model, self.overwrite = model, overwrite
        self._lock = FolderLock(self.folder, "wait until it has ended, or take another out_dir")
        self._parts: list[dict[str, Any]] = []
        self._waiting = self._shards = self._count = 0
        self._spec: TokenSpec | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "predict":
            return
        make_header(pl_module, split=self.split, count=0)  # refuses a model without ids before any work is done
        data = getattr(trainer, "datamodule", None)
        if data is not None:
            if not isinstance(data, PredictsSplit):
                raise ValueError(f"{type(data).__name__} has no predict_split, so TokenDump cannot choose {self.split}")
            data.predict_split = self.split
        if refused := trainer.strategy.broadcast(self._take_folder() if trainer.is_global_zero else None):
            raise FileExistsError(refused)
        self._parts, self._waiting, self._shards, self._count = [], 0, 0, 0

    def _take_folder(self) -> str | None:
        """Lock the folder against other dumps; return None, or why that cannot be."""
        try:
            self._lock.acquire()
        except FileExistsError as error:
            return str(error)
        if self._old() and not self.overwrite:
            return f"{self.folder} holds token shards already: take another out_dir, or overwrite=true"
        return None

    def _old(self) -> list[Path]:
        return [*self.folder.glob(HEADER), *self.folder.glob("tokens-*.safetensors")]  # unfinished without the first

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.predict_loop.return_predictions = False  # Lightning would keep every batch in memory
        if trainer.is_global_zero:
            for path in self._old():
                path.unlink()
        trainer.strategy.barrier("old token shards are removed")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._lock.release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._lock.release()

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        if not isinstance(prediction, Tokens) or prediction.ids is None:
            raise TypeError(f"predict_step of {type(pl_module).__name__} must return Tokens with ids")
        self._spec = prediction.spec
        part: dict[str, Any] = {"ids": prediction.ids.to("cpu", torch.int32)}
        if "index" in batch:
            part["index"] = batch["index"].cpu()
        elif batch_indices is not None:
            part["index"] = torch.tensor(batch_indices, dtype=torch.int64)
        else:
            raise ValueError("token shards need the place of each image: let the data module's batches have an index")
        if "label" in batch:
            part["label"] = batch["label"].cpu()
        if self.with_images:
            part["image"] = quantise(batch["image"]).cpu()
        part |= {name: [str(text) for text in _listed(batch[name])] for name in TEXTS if name in batch}
        self._parts.append(part)
        self._waiting += len(part["ids"])
        while self._waiting >= self.shard_size:
            self._write(trainer, self.shard_size)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._waiting:
            self._write(trainer, self._waiting)
        total = torch.tensor(self._count, device=trainer.strategy.root_device)
        total = trainer.strategy.reduce(total, reduce_op="sum")  # also waits for the shards of all ranks
        if trainer.is_global_zero:
            data = getattr(trainer, "datamodule", None)
            exact = isinstance(pl_module, ZooModule) or trainer.precision == "32-true"
            header = make_header(
                _source(pl_module), split=self.split, count=int(total), model=self.model, spec=self._spec,
                precision=ID_PRECISION if exact else str(trainer.precision),
                num_classes=data.num_classes if isinstance(data, KnowsClasses) else None,
            )  # fmt: skip
            write_header(self.folder, header)
            print(f"{int(total):,} images x {header['num_tokens']} tokens in {self.folder}")

    def _write(self, trainer: Trainer, size: int) -> None:
        waiting = {key: _joined([part[key] for part in self._parts]) for key in self._parts[0]}
        write_shard(
            self.folder,
            rank=trainer.global_rank,
            number=self._shards,
            **{key: value[:size] for key, value in waiting.items()},
        )
        self._parts = [{key: value[size:] for key, value in waiting.items()}]
        self._waiting -= size
        self._count += size
        self._shards += 1


def _source(model: Any) -> Any:
    """The model whose ids are written: the tokenizer of a second stage that passes on its ids, else the model."""
    return model.frozen["tokenizer"] if isinstance(model, ZooModule) and model.encodes_by_tokenizer else model


def _listed(texts: Any) -> list[Any]:
    return texts.tolist() if isinstance(texts, Tensor) else list(texts)


def _joined(parts: list[Any]) -> Any:
    """Tensors, or texts, one after the other."""
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [text for part in parts for text in part]
