"""The text side of a Q-Former from BERT: bert-base-uncased as published, or a smaller one with the same vocabulary."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo.assets import minilm_folder
from zoo.checkpoints.config_checks import ConfigFields, Required
from zoo.checkpoints.config_files import read_config_beside
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.format import check_positions
from zoo.checkpoints.unused_entries import entries_of, report_unused_entries, track_entries, untrack_entries
from zoo.nn.qformer import EPS

PREFIX = "bert."
#: fields that no tensor shows; the others are not looked at
FIELDS = ConfigFields(
    must={
        "hidden_act": Required("gelu", "gelu"), "layer_norm_eps": Required(EPS, 1e-12),
        "position_embedding_type": Required("absolute", "absolute"),
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
    config = read_config_beside(folder) if folder.is_dir() else {}
    heads = config.get("num_attention_heads")
    FIELDS.check(config, f"config.json of {source}")
    file = track_entries(read_checkpoint(folder).state)
    state = {name.removeprefix(PREFIX): value.float() for name, value in file.items()}
    own = qformer.state_dict()
    if heads is not None and heads != qformer.heads:
        raise ValueError(
            f"{source} has {heads} attention heads and the Q-Former {qformer.heads}: set qformer.heads to {heads}"
        )
    found = _to_own_names(state, own)
    counted = check_positions(file, [name for name in file if name.endswith("embeddings.position_ids")])
    report_unused_entries(
        source, file, entries_of(value for name, value in found.items() if name in own).union(counted)
    )
    found = untrack_entries(found)
    layers = 1 + max(int(name.split(".")[3]) for name in found if name.startswith("bert.encoder.layer."))
    if layers < qformer.depth:
        raise ValueError(
            f"{source} has {layers} layers, the Q-Former {qformer.depth}: set qformer.depth to {layers} or less"
        )
    for name, value in found.items():
        if name not in own:
            continue
        target = own[name]
        if value.shape != target.shape:
            raise ValueError(
                f"{source} does not fit the Q-Former: {name} is {tuple(value.shape)}, not {tuple(target.shape)}; "
                "set qformer.width, qformer.mlp_width and vocabulary to BERT's"
            )
        target.copy_(value)
    qformer.copy_text_to_query_branch()


def _to_own_names(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
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
