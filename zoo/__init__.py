"""tokenzoo: visual tokenizers, and the models built on their tokens, behind one interface.

Shapes: ``b`` batch, ``h w`` pixels, ``gh gw`` token grid, ``n`` tokens, ``d`` width, ``k`` codebook, ``v`` vocabulary,
``q`` queries, ``t`` text.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from zoo.version import __version__ as __version__

if TYPE_CHECKING:
    from zoo.language.lora import LoRA
    from zoo.losses.discriminator import Discriminator
    from zoo.module import ZooModule
    from zoo.nn.qformer_sizes import QFormerSizes
    from zoo.optim import Optim
    from zoo.presets import Weights, list_models, register
    from zoo.quantizers.codebook import Codebook
    from zoo.registry import create_model, model_info
    from zoo.tokens import NotInvertible, Segment, Tokenizer, Tokens, TokenSpec, Vocabulary, reconstruct

__all__ = [
    "Codebook",
    "Discriminator",
    "LoRA",
    "NotInvertible",
    "Optim",
    "QFormerSizes",
    "Segment",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "Vocabulary",
    "Weights",
    "ZooModule",
    "create_model",
    "list_models",
    "model_info",
    "reconstruct",
    "register",
]

#: where the public names are; what is not asked for is not imported, so that ``import zoo`` needs no torch
_HOME = dict.fromkeys(
    ("NotInvertible", "Segment", "TokenSpec", "Tokenizer", "Tokens", "Vocabulary", "reconstruct"), "tokens"
)
_HOME |= dict.fromkeys(("Weights", "create_model", "list_models", "model_info", "register"), "registry")
_HOME |= {"Optim": "optim", "ZooModule": "module"}
_HOME |= {"Codebook": "quantizers.codebook", "Discriminator": "losses.discriminator"}
_HOME |= {"LoRA": "language.lora", "QFormerSizes": "nn.qformer_sizes"}


def __getattr__(name: str) -> object:
    """Public names and paper classes (``zoo.BEiT``), imported when first asked for."""
    if name in _HOME:
        value = getattr(import_module(f"zoo.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    if name in _HOME.values():
        return import_module(f"zoo.{name}")
    if not name.startswith("_") and name[:1].isupper():
        from zoo.presets import presets

        for preset in presets().values():
            if preset.cls.__name__ == name:
                return preset.cls
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
