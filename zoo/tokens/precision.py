"""The precision that ids are computed in, whoever calls ``encode``."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial, wraps
from itertools import chain
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from zoo.tokens.interface import Tokens

#: type of all numbers behind an id, whatever precision the code around ``encode`` runs in
ID_PRECISION = "float32"


NOT_BEHIND_IDS = ("language_model", "perceptual", "teacher")  # parts of a model that no id depends on


def ids_in_float32(encode: Callable[..., Tokens]) -> Callable[..., Tokens]:
    """Make ``encode`` of a discrete tokenizer give the same ids whoever calls it: without autocast and without TF32.

    In bfloat16 a few percent of the ids would differ, so that training on the fly, shards written by ``predict`` and
    measurements would not agree. Continuous tokens follow the precision around them.

    Args:
        encode: the method; :class:`zoo.module.ZooModule` wraps that of every subclass.
    """

    @wraps(encode)
    def encode_exactly(self: Any, images: Any, *args: Any, **kwargs: Any) -> Tokens:
        if self.spec is None or not self.spec.vocab_size or not isinstance(images, Tensor):
            return encode(self, images, *args, **kwargs)
        if torch.compiler.is_compiling():
            with torch.autocast(images.device.type, enabled=False):
                return encode(self, images, *args, **kwargs)
        check_weights(self)
        with without_autocast(images.device), without_tf32():
            # one layout in memory, since others make convolutions sum in another order
            return encode(self, images.contiguous(), *args, **kwargs)

    return encode_exactly


@contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Switch off mixed precision inside the block."""
    if not torch.amp.is_autocast_available(device.type):
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def check_weights(model: nn.Module) -> None:
    """Refuse a tokenizer whose weights, or those of its frozen networks, would give wrong ids.

    Raises:
        ValueError: for weights of another type than float32, or that hold infinity or NaN, of which argmax would make
            ids all the same.
    """
    elsewhere = (*NOT_BEHIND_IDS, *getattr(model, "training_only", ()))
    parts = [("", model), *((f"{name}.", tower) for name, tower in getattr(model, "frozen", {}).items())]
    found: dict[str, Tensor] = {}
    for prefix, part in parts:
        for name, value in chain(part.named_parameters(), part.named_buffers()):
            name = f"{prefix}{name}"
            if not value.is_floating_point() or name.startswith(elsewhere):
                continue
            if value.dtype != torch.float32:
                raise ValueError(
                    f"{name} of this {type(model).__name__} has weights of {value.dtype}, and ids are those of "
                    f"float32 weights: call .float(), or leave out what cast them, and run the rest under autocast"
                )
            found[name] = value
    state = tuple((value.data_ptr(), 0 if value.is_inference() else value._version) for value in found.values())
    if getattr(model, "_weights_seen", None) == state:  # looked at once per write: a GPU waits for it
        return
    # a mask among the buffers may well be infinite
    bad = {n: (~v.isfinite() if isinstance(v, nn.Parameter) else v.isnan()).any() for n, v in found.items()}
    if names := names_where(bad):
        raise ValueError(
            f"{names[0]} of this {type(model).__name__} is no longer finite, so its ids would mean nothing: the "
            "training diverged, take an earlier checkpoint"
        )
    model._weights_seen = state  # type: ignore[assignment]


def names_where(flags: Mapping[str, Bool[Tensor, ""]]) -> list[str]:
    """Names of the flags that are set, with one synchronisation of the GPU for all of them."""
    if not flags:
        return []
    device = next(iter(flags.values())).device
    values = torch.stack([flag.to(device) for flag in flags.values()]).tolist()
    return [name for name, on in zip(flags, values, strict=True) if on]


@contextmanager
def without_tf32() -> Iterator[None]:
    """Compute float32 products and convolutions in full precision inside the block, whatever the run allows."""
    changed: list[tuple[Callable[[str], None], str]] = []
    for get, change, exact in _tf32_switches():
        if (before := get()) != exact:
            change(exact)
            changed.append((change, before))
    try:
        yield
    finally:
        for change, before in changed:
            change(before)


def check_precision(precision: str) -> None:
    """Refuse a Trainer precision that would store weights in another type than float32, which changes ids.

    Args:
        precision: the Trainer's setting.

    Raises:
        ValueError: naming the precisions that keep them.
    """
    if precision.endswith("-true") and precision != "32-true":
        raise ValueError(
            f"--trainer.precision={precision} would keep weights in another precision than float32, "
            "where ids change: use bf16-mixed, or 32"
        )


def _tf32_switches() -> Iterator[tuple[Callable[[], str], Callable[[str], None], str]]:
    """Getter, setter and full-precision value of each switch for float32 products and cuDNN convolutions."""
    # torch refuses to read an old switch where the new one was used, and the other way round
    cudnn = torch.backends.cudnn
    try:
        torch.get_float32_matmul_precision()
        yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"
    except RuntimeError:
        yield from _newer_switch(torch.backends.cuda.matmul)
    try:
        _ = cudnn.allow_tf32
        yield (lambda: str(cudnn.allow_tf32)), (lambda value: setattr(cudnn, "allow_tf32", value == "True")), "False"
    except RuntimeError:
        yield from _newer_switch(cudnn.conv)  # type: ignore[attr-defined]


def _newer_switch(switch: Any) -> Iterator[tuple[Callable[[], str], Callable[[str], None], str]]:
    yield (lambda: switch.fp32_precision), partial(setattr, switch, "fp32_precision"), "ieee"
