"""Google's MaskGIT transformers: Flax msgpack files ``maskgit_imagenet{256,512}_checkpoint``.

Dense kernels are (in, out), those of the attention (width, heads, head width) and (heads, head width, width), so the
file says how many heads there are; the released configuration says 16, the paper 8.
"""

import re
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from zoo.checkpoints.format import Converted, Format, State

MARK = "Embed_0/word_embeddings/embedding"
PREFIX = "network."
SELF = "Attention_0/self_attention"
ATTENTION = tuple(f"{part}/{leaf}" for part in ("query", "key", "value", "out") for leaf in ("kernel", "bias"))
PLAIN = {
    "Embed_0/word_embeddings/embedding": "word_embeddings.weight",
    "Embed_0/position_embeddings/embedding": "position_embeddings.weight",
    "Embed_0/embeddings_ln": "embeddings_norm",
    "MlmLayer_0/mlm_dense": "head_dense",
    "MlmLayer_0/mlm_ln": "head_norm",
    "MlmLayer_0/mlm_bias/bias": "head_bias",
}
IN_LAYER = {
    "Attention_0/attention_output_ln": "attention_norm",
    "Mlp_0/intermediate_output": "mlp_in",
    "Mlp_0/layer_output": "mlp_out",
    "Mlp_0/layer_output_ln": "mlp_norm",
}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def matches(state: State) -> bool:
    """Recognise the names of the Flax modules."""
    return any(name.endswith(MARK) for name in state)


def convert(state: State, model: Any) -> Converted:
    """Rename, transpose, and stack queries, keys and values.

    Raises:
        ValueError: for a model of another layout, or with another number of heads than the file.
    """
    if model.layout == "valeoai":
        raise ValueError("these are weights of Google's transformer: build the model with layout='google'")
    start = next(name for name in state if name.endswith(MARK)).removesuffix(MARK)
    state = {name.removeprefix(start): value for name, value in state.items()}
    for layer in sorted({m[1] for name in state if (m := re.match(r"TransformerLayer_(\d+)/", name))}, key=int):
        if absent := [leaf for leaf in ATTENTION if f"TransformerLayer_{layer}/{SELF}/{leaf}" not in state]:
            raise ValueError(f"the file lacks TransformerLayer_{layer}/{SELF}/{absent[0]}: it is not whole")
    if f"TransformerLayer_0/{SELF}/query/kernel" not in state:
        raise ValueError("the file has no TransformerLayer_0: it is not whole")
    heads = state[f"TransformerLayer_0/{SELF}/query/kernel"].shape[1]
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        if (new := _to_own_name(name)) is not None:
            found[PREFIX + new] = value.t() if name.endswith("/kernel") else value
    for layer in sorted({m[1] for name in state if (m := re.match(r"TransformerLayer_(\d+)/", name))}, key=int):
        found |= _join_attention(state, layer)
    asked = model.hparams.get("heads")
    if asked not in (None, heads):
        raise ValueError(f"the weights have {heads} attention heads, the model {asked}: set heads to {heads} or None")
    return Converted({name: value.float().contiguous() for name, value in found.items()}, settings={"heads": heads})


def _to_own_name(name: str) -> str | None:
    layer = re.match(r"TransformerLayer_(\d+)/(.*)", name)
    start, table, rest = (f"layers.{layer[1]}.", IN_LAYER, layer[2]) if layer else ("", PLAIN, name)
    if rest in table:
        return start + table[rest]
    module, _, leaf = rest.rpartition("/")
    return f"{start}{table[module]}.{LEAVES[leaf]}" if module in table and leaf in LEAVES else None


def _join_attention(state: State, layer: str) -> dict[str, Tensor]:
    def part(name: str) -> Tensor:
        return state[f"TransformerLayer_{layer}/Attention_0/self_attention/{name}"]

    names = ("query", "key", "value")
    return {
        f"{PREFIX}layers.{layer}.qkv.weight": torch.cat(
            [rearrange(part(f"{n}/kernel"), "d h e -> (h e) d") for n in names]
        ),
        f"{PREFIX}layers.{layer}.qkv.bias": torch.cat([part(f"{n}/bias").flatten() for n in names]),
        f"{PREFIX}layers.{layer}.out.weight": rearrange(part("out/kernel"), "h e d -> d (h e)"),
        f"{PREFIX}layers.{layer}.out.bias": part("out/bias"),
    }


GOOGLE = Format("Google's MaskGIT transformer (Flax)", matches, convert)
