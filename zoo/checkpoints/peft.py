"""LoRA matrices as peft writes them: its configuration is read and checked field by field."""

import re
from collections.abc import Mapping
from typing import Any

from zoo.checkpoints.config_checks import ConfigFields, Required, accept_any_of

#: fields of peft's configuration that no tensor shows, and what plain LoRA has
PLAIN_LORA: dict[str, Any] = {
    "peft_type": "LORA", "use_rslora": False, "use_dora": False, "fan_in_fan_out": False, "bias": "none",
    "rank_pattern": {}, "alpha_pattern": {}, "layer_replication": [],
}  # fmt: skip


def read_adapter_settings(adapter: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Read peft's ``adapter_config.json`` as the description of one of our own checkpoints.

    The scale of LoRA is in no tensor: with another one the weights load and mean other things.

    Args:
        adapter: the file's content.
        source: name of the file, for the message.

    Raises:
        ValueError: for another kind of adapter than plain LoRA.
    """
    names = {"rank": "r", "alpha": "lora_alpha"}
    for name, plain in PLAIN_LORA.items():
        found = adapter.get(name, plain)
        if found != plain and (found is not None or plain):
            raise ValueError(f"{source} says {name} {found!r}, and only LoRA with {plain!r} is read: merge it first")
    found = {ours: adapter[theirs] for ours, theirs in names.items() if theirs in adapter}
    return {"init_args": {"lora": found}}


def check_adapter(adapter: Mapping[str, Any], model: Any, source: str) -> None:
    """Check the fields of peft's ``adapter_config.json`` of plain LoRA, for any model with LoRA.

    Args:
        adapter: the file's content, which :func:`read_adapter_settings` has seen.
        model: that gets the matrices.
        source: name of the file, for the message.

    Raises:
        ValueError: naming the field that says something else than the model has, or that nobody knows.
    """
    state = [name for name in model.state_dict() if ".lora_A." in name]
    layers = [name.partition(".network.")[2].partition(".lora_A.")[0] for name in state]
    rank = model.state_dict()[state[0]].shape[0] if state else 0
    must = {
        "r": Required(rank, rank, "set lora.rank"),
        "init_lora_weights": Required(
            True, True, "the language model was changed with the matrices",
            accept_any_of(True, False, None, "gaussian", "eva", "orthogonal"),
        ),
    }  # fmt: skip
    free = (
        "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode",
        "lora_dropout", "layers_pattern", "megatron_core", "eva_config", "qalora_group_size", "exclude_modules",
        "runtime_config",
    )  # fmt: skip
    ConfigFields((*PLAIN_LORA, "lora_alpha", "target_modules"), must, free).check(adapter, source)
    targets = adapter.get("target_modules")
    if targets and targets != "all-linear":
        for layer in layers:
            if not _is_target(layer, targets):
                raise ValueError(
                    f"{source} says target_modules {targets!r}, and this model has matrices beside every linear "
                    f"layer, {layer} too: that is not implemented"
                )


def _is_target(layer: str, targets: Any) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, layer) is not None
    return any(layer == name or layer.endswith(f".{name}") for name in targets)
