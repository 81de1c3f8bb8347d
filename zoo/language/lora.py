"""LoRA (Hu et al. 2021, arXiv:2106.09685) in a language model, by peft."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from zoo.choices import check_number
from zoo.language.language_model import LanguageModel


@dataclass(frozen=True)
class LoRA:
    """Settings of low-rank matrices (LoRA, arXiv:2106.09685).

    Args:
        rank: of the matrices.
        alpha: their products are scaled by ``alpha / rank``.
        dropout: in front of them, a probability.
        train_embeddings_and_norms: whether word vectors (with what else makes vectors of words), output layer and norms
            are trained as they are. None does as the paper of the model.
    """

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.05
    train_embeddings_and_norms: bool | None = None

    def __post_init__(self) -> None:
        check_number("lora.rank", self.rank, least=1, whole=True)
        check_number("lora.alpha", self.alpha, least=1, whole=True)
        check_number("lora.dropout", self.dropout, least=0, below=1)


def add_lora(language: LanguageModel, lora: LoRA, train_embeddings_and_norms: bool = False) -> None:
    """Put trainable low-rank matrices beside every linear layer of the blocks (LoRA, arXiv:2106.09685).

    What is trained is float32 whatever the rest is, and changes to the rest's type and back where they meet.

    Args:
        language: gets them, in place; everything else is frozen.
        lora: rank, scale, dropout, and what else is trained.
        train_embeddings_and_norms: as in the paper of the model, where ``lora`` leaves it open.

    Raises:
        ModuleNotFoundError: with the pip line.
    """
    if lora.train_embeddings_and_norms is not None:
        train_embeddings_and_norms = lora.train_embeddings_and_norms
    if language.network is None:  # on the meta device
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModuleNotFoundError("LoRA needs the package peft: pip install 'tokenzoo[lora]'") from None
    from transformers.pytorch_utils import Conv1D

    network = language.network
    table, head = network.get_input_embeddings(), network.get_output_embeddings()
    ends = {id(module) for part in (table, head) for module in part.modules()}
    norms = [module for module in network.modules() if "Norm" in type(module).__name__]
    in_full = {id(p) for module in (table, head, *norms) for p in module.parameters()}
    in_full = in_full if train_embeddings_and_norms else set()
    linear = (nn.Linear, Conv1D)  # GPT-2's
    targets = {n: m for n, m in network.named_modules() if isinstance(m, linear) and id(m) not in ends}
    config = LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=list(targets), bias="none",
        fan_in_fan_out=all(isinstance(m, Conv1D) for m in targets.values()),
    )  # fmt: skip
    rest = next(iter(targets.values())).weight.dtype
    if train_embeddings_and_norms and rest != torch.float32:
        for module in (head, *norms):
            module.register_forward_pre_hook(_to_float)
        for module in (table, *norms):
            module.register_forward_hook(partial(_returned, rest))
    inject_adapter_in_model(config, network)
    for name, parameter in network.named_parameters():
        trained = ".lora_" in name or id(parameter) in in_full
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()


def _to_float(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return (args[0].float(), *args[1:])


def _returned(dtype: torch.dtype, _: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
    return output.to(dtype)


def merge_lora(language: LanguageModel) -> None:
    """Add the product of the low-rank matrices to the frozen weights and remove the matrices; in place.

    For export and faster generation. The model that holds the language model cannot be saved afterwards.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(language.network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(language.network.get_submodule(parent), child, module.get_base_layer())
            language.not_savable = "LoRA was merged into weights that are not saved: save the model before merging"
