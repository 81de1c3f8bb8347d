"""The resampler of mlfoundations/open_flamingo, for a :class:`zoo.nn.bridges.QueryBridge` with joint attention."""

import re

import torch
from torch import Tensor

from zoo.checkpoints.format import State
from zoo.checkpoints.unused_entries import report_unused_entries

LAYER = re.compile(r"layers\.(\d+)\.(\d)\.(.+)")
#: within a layer: (sub-module, name) of theirs -> ours
NAMES = {
    ("0", "norm_media"): "attention.image_LayerNorm",
    ("0", "norm_latents"): "attention.output.LayerNorm",
    ("0", "to_q"): "attention.self.query",
    ("0", "to_out"): "attention.output.dense",
    ("1", "0"): "output_query.LayerNorm",
    ("1", "1"): "intermediate_query.dense",
    ("1", "3"): "output_query.dense",
}


def to_bridge_names(state: State, prefix: str = "perceiver.") -> dict[str, Tensor]:
    """Rename the weights of a resampler to those of a bridge.

    Args:
        state: of a resampler, or of a whole model that holds one under ``prefix``.
        prefix: of its names there.

    Raises:
        ValueError: for other weights, or a resampler with embeddings of frames, which images do not need.
    """
    inner = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)} or state
    if inner is not state:
        report_unused_entries("the file", state, (name for name in state if name.startswith(prefix)))
    if "latents" not in inner or "norm.weight" not in inner:
        raise ValueError("these weights hold no perceiver resampler: it has 'latents' and 'norm.weight'")
    found: dict[str, Tensor] = {"query_tokens": inner["latents"][None]}
    for name, value in inner.items():
        if name == "latents":
            continue
        if name.startswith("norm."):
            found[f"Qformer.bert.encoder.final.{name.removeprefix('norm.')}"] = value
            continue
        match = LAYER.fullmatch(name)
        if match is None or (match[2], match[3].rpartition(".")[0]) not in {*NAMES, ("0", "to_kv")}:
            raise ValueError(f"the resampler has {name!r}, which images have no use for: only bare ones are read")
        layer, part, rest = match.groups()
        module, _, kind = rest.rpartition(".")
        stem = f"Qformer.bert.encoder.layer.{layer}"
        if module == "to_kv":
            key, values = value.chunk(2)
            found |= {f"{stem}.attention.self.key.{kind}": key, f"{stem}.attention.self.value.{kind}": values}
        else:
            found[f"{stem}.{NAMES[part, module]}.{kind}"] = value
    return {name: torch.clone(value) for name, value in found.items()}
