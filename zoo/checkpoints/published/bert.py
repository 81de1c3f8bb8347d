"""The text side of a Q-Former from BERT: bert-base-uncased as published, or a smaller one with the same vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.assets import minilm_folder
from zoo.checkpoints.config_facts import config_beside
from zoo.checkpoints.config_fields import Fields, Must
from zoo.checkpoints.files import read
from zoo.checkpoints.format import check_positions
from zoo.checkpoints.provenance import entries_of, plain, say_unused, trace
from zoo.nn.qformer import EPS

PREFIX = "bert."
#: what no tensor shows; the other fields of a BERT are not looked at
FIELDS = Fields(
    must={
        "hidden_act": Must("gelu", "gelu"), "layer_norm_eps": Must(EPS, 1e-12),
        "position_embedding_type": Must("absolute", "absolute"),
    },
    free=("*",),
)  # fmt: skip


def start_from_bert(qformer: Any, source: str) -> None:
    """Give the text branch, the shared self-attention and, as their copy, the query branch the weights of a BERT.

    BERT adds the embedding of the first segment to every word; a Q-Former has none, so it goes into the positions. The
    rows of words that BERT lacks (``[DEC]``), and the layers behind the Q-Former's depth, are left as they are.

    Args:
        qformer: :class:`zoo.nn.qformer.QFormer` with a text branch.
        source: ``minilm`` (6 layers of width 384, from a pip package), or a folder of ``BertModel``.

    Raises:
        ValueError: where sizes differ, naming them.
        FileNotFoundError: for a folder that is not there.
        ModuleNotFoundError: with the pip line.
    """
    folder = minilm_folder() if source == "minilm" else Path(source)
    if not folder.exists():
        raise FileNotFoundError(f"text_init is {source!r}, which is neither 'minilm' nor a folder of BERT")
    config = config_beside(folder) if folder.is_dir() else {}
    heads = config.get("num_attention_heads")
    FIELDS.check(config, f"config.json of {source}")
    file = trace(read(folder).state)
    state = {name.removeprefix(PREFIX): value.float() for name, value in file.items()}
    own = qformer.state_dict()
    if heads is not None and heads != qformer.heads:
        raise ValueError(f"{source} has {heads} attention heads and the Q-Former {qformer.heads}: set heads to {heads}")
    found = _renamed(state, own)
    counted = check_positions(file, [name for name in file if name.endswith("embeddings.position_ids")])
    say_unused(source, file, entries_of(value for name, value in found.items() if name in own).union(counted))
    found = plain(found)
    layers = 1 + max(int(name.split(".")[3]) for name in found if name.startswith("bert.encoder.layer."))
    if layers < qformer.depth:
        raise ValueError(f"{source} has {layers} layers, the Q-Former {qformer.depth}: set depth to {layers} or less")
    for name, value in found.items():
        if name not in own:
            continue
        target = own[name]
        if value.shape != target.shape:
            raise ValueError(
                f"{source} does not fit the Q-Former: {name} is {tuple(value.shape)}, not {tuple(target.shape)}; "
                "set width, mlp_width and vocabulary to BERT's"
            )
        target.copy_(value)
    qformer.copy_text_to_query_branch()


def _renamed(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for name, value in state.items():
        if name == "embeddings.word_embeddings.weight":
            table = own["bert.embeddings.word_embeddings.weight"]
            if len(value) <= len(table) and value.shape[1:] == table.shape[1:]:
                table = torch.cat([value, table[len(value) :]])
            else:
                table = value  # to be refused with both shapes
            found["bert.embeddings.word_embeddings.weight"] = table
        elif name == "embeddings.position_embeddings.weight":
            segment = state.get("embeddings.token_type_embeddings.weight")
            value = value if segment is None else value + segment[0]
            found["bert.embeddings.position_embeddings.weight"] = value[
                : len(own["bert.embeddings.position_embeddings.weight"])
            ]
        elif name.startswith(("embeddings.LayerNorm.", "encoder.layer.")):
            found[f"bert.{name}"] = value
        elif name.startswith(("cls.predictions.transform.", "cls.predictions.bias")):
            if name == "cls.predictions.bias":
                value = torch.cat([value, own["cls.predictions.bias"][len(value) :]])
            found[name] = value
    return found
