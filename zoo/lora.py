"""LoRA (Hu et al. 2021, arXiv:2106.09685) in a language model, by peft."""

from collections.abc import Sequence

from torch import nn

from zoo.language_models import LanguageModel


def add_lora(language: LanguageModel, rank: int, alpha: int, dropout: float, also: Sequence[str] = ()) -> None:
    """Put trainable low-rank matrices beside every linear layer of the blocks (LoRA, arXiv:2106.09685).

    Args:
        language: gets them, in place; everything else is frozen.
        rank: of the matrices.
        alpha: their products are scaled by ``alpha / rank``.
        dropout: in front of them.
        also: ends of the names of parameters that are trained as well.

    Raises:
        ModuleNotFoundError: with the pip line.
        ValueError: for a rank below 1.
    """
    if rank < 1:
        raise ValueError(f"lora_rank must be at least 1, got {rank}")
    if language.network is None:  # on the meta device
        return
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ModuleNotFoundError("LoRA needs the package peft: pip install 'tokenzoo[lora]'") from None
    head = language.network.get_output_embeddings()
    targets = [n for n, m in language.network.named_modules() if isinstance(m, nn.Linear) and m is not head]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
    inject_adapter_in_model(config, language.network)
    for name, parameter in language.network.named_parameters():
        trained = ".lora_" in name or any(name.endswith(end) for end in also)
        parameter.requires_grad_(trained)
        if trained:
            parameter.data = parameter.data.float()


def merge_lora(language: LanguageModel) -> None:
    """Add the low-rank matrices to the weights that they stand beside, and take them away; in place."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for name, module in list(language.network.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(language.network.get_submodule(parent), child, module.get_base_layer())
