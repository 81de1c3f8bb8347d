"""Statistics that published networks expect of their pixels."""

from typing import Literal

from jaxtyping import Float
from torch import Tensor

Normalisation = Literal["half", "imagenet"]
STATISTICS = {
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def normalise(images: Float[Tensor, "b 3 h w"], normalisation: Normalisation) -> Float[Tensor, "b 3 h w"]:
    """Subtract the mean and divide by the standard deviation of each colour."""
    mean, std = (images.new_tensor(s)[:, None, None] for s in STATISTICS[normalisation])
    return (images - mean) / std
