"""TokenData: train a second stage on tokens that were written to disk once, instead of encoding images each time."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from datamodules.base import Joined, Sample, Samples, Split, ZooDataModule
from zoo.tokens import sides_of
from zoo.tokens.shards import (
    HEADER,
    TEXTS,
    check_length,
    check_precision,
    check_tokenizer,
    read_header,
    read_shards,
    read_text,
)


class _Shard(Samples):
    """Samples of one shard."""

    def __init__(self, shard: dict[str, Tensor]):
        self.shard = shard

    def __len__(self) -> int:
        return len(self.shard["ids"])

    def captions(self) -> list[str]:
        """The caption of each image, where the shard has them."""
        return [text_in(self.shard, i) for i in range(len(self))] if "caption_ends" in self.shard else []

    def sample(self, i: int) -> Sample:
        shard = self.shard
        sample: Sample = {"ids": shard["ids"][i].long(), "index": int(shard["index"][i])}
        if "label" in shard:
            sample["label"] = int(shard["label"][i])
        if "image" in shard:
            sample["image"] = shard["image"][i]
        return sample | {name: read_text(shard, i, name) for name in TEXTS if f"{name}_ends" in shard}


class TokenDataset(Joined):
    """Samples of the shards in one folder.

    Args:
        shards: as ``zoo.tokens.shards.read_shards`` returns them.
    """

    def __init__(self, shards: list[dict[str, Tensor]]):
        super().__init__([_Shard(shard) for shard in shards])


class TokenData(ZooDataModule):
    """Token shards of ``lightning predict``: ``ids``, ``index``, and where stored ``label``, ``image`` and texts.

    The texts are ``caption``, and ``file`` and ``image_id``, which say which picture the tokens are of.

    When it feeds a model that holds a tokenizer (``model.frozen["tokenizer"]``), that tokenizer must be the one that
    wrote the shards, down to its weights, and the model must have a position for each token.

    Args:
        root: folder with ``train/`` and ``val/``, and ``test/`` if there is one (else ``val`` is tested on).
        image_size: side of the stored images, or (height, width), which a recipe's ``${data.init_args.image_size}``
            reads; None takes what is there.
        batch_size: images per training batch and per process.
        tokenizer: registry name (as in ``zoo.create_model``, or ``ckpt:PATH``) of the tokenizer that the tokens must
            come from; None checks only against the trained model.
        eval_batch_size: images per batch elsewhere; None takes ``batch_size``.
        num_workers: processes that load samples.
        predict_split: the samples that ``predict`` goes through.
        seed: of the order of the training samples; None takes the seed of the run.
    """

    def __init__(
        self,
        root: str,
        image_size: int | tuple[int, int] | None = None,
        batch_size: int = 32,
        tokenizer: str | None = None,
        eval_batch_size: int | None = None,
        num_workers: int = 0,
        predict_split: Split = "val",
        seed: int | None = None,
    ):
        super().__init__(batch_size, eval_batch_size, num_workers, predict_split, seed)
        self.root, self.image_size, self.tokenizer = Path(root), image_size, tokenizer
        self.headers: dict[str, dict[str, Any]] = {}

    @property
    def num_classes(self) -> int | None:
        """Classes of the labels after ``setup``; None where there are none, or the dump does not say it."""
        return self.headers.get("train", {}).get("num_classes")

    def setup(self, stage: str | None = None) -> None:
        if self.train is None:
            if not self.root.is_dir():
                raise FileNotFoundError(
                    f"there is no folder {self.root}: write token shards with lightning predict, then set root to them"
                )
            self.train, self.val = self._read("train"), self._read("val")
            self.test = self._read("test") if (self.root / "test" / HEADER).exists() else self.val
            self._views = {"train": self.train, "val": self.val, "test": self.test}
            rank_zero_info(
                f"TokenData: {self.root}, {self.headers['train']['num_tokens']} tokens of "
                f"{self.headers['train']['vocab_size']} per image; train {len(self.train):,}, val {len(self.val):,}"
            )
        self._check_readers()

    def _read(self, split: str) -> TokenDataset:
        folder = self.root / split
        self.headers[split] = read_header(folder)
        check_precision(self.headers[split], folder)
        shards = read_shards(folder)
        for image in (shard["image"] for shard in shards if "image" in shard):
            if self.image_size is not None and tuple(image.shape[-2:]) != sides_of(self.image_size):
                height, width = image.shape[-2:]
                raise ValueError(
                    f"{folder} holds images of {height}x{width}, but image_size is {self.image_size}: set "
                    f"data.image_size to {width if height == width else [height, width]}, or write the shards again"
                )
        return TokenDataset(shards)

    def _check_readers(self) -> None:
        """Refuse tokens that the named tokenizer, or the one inside the trained model, did not write."""
        from zoo.registry import model_from

        named = None if self.tokenizer is None else model_from(self.tokenizer)
        trained = getattr(self.trainer, "lightning_module", None)
        held = getattr(trained, "frozen", {}).get("tokenizer")
        for header in self.headers.values():
            if named is not None:
                check_tokenizer(header, named)
            if isinstance(held, torch.nn.Module):
                # a second stage may use its tokenizer at another image size than the tokenizer's own
                spec: Any = getattr(trained, "spec", None) or held.spec
                check_length(header, spec.num_tokens, type(trained).__name__)
                check_tokenizer(header, held)
