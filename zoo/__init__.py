"""tokenzoo: visual tokenizers, and the models built on their tokens, behind one interface.

Shapes: ``b`` batch, ``h w`` pixels, ``gh gw`` token grid, ``n`` tokens, ``d`` width, ``k`` codebook, ``v`` vocabulary,
``q`` queries, ``t`` text.
"""

__version__ = "0.1.0"

from zoo.module import ZooModule
from zoo.optim import Optim
from zoo.registry import Weights, create_model, list_models, model_info, register
from zoo.tokens import NotInvertible, Segment, Tokenizer, Tokens, TokenSpec, reconstruct

__all__ = [
    "NotInvertible",
    "Optim",
    "Segment",
    "TokenSpec",
    "Tokenizer",
    "Tokens",
    "Weights",
    "ZooModule",
    "create_model",
    "list_models",
    "model_info",
    "reconstruct",
    "register",
]


def __getattr__(name: str) -> object:
    """Paper classes by their bare name (``zoo.BEiT``), imported when first asked for."""
    if not name.startswith("_") and name[:1].isupper():
        from zoo.registry import presets

        for preset in presets().values():
            if preset.cls.__name__ == name:
                return preset.cls
    raise AttributeError(f"module 'zoo' has no attribute {name!r}")
