"""The side that BEiT and its classifier share: sizes, pixels, layers and features around their transformer."""

from typing import Literal

from jaxtyping import Float, Shaped
from torch import Tensor, nn

from zoo.nn.beit_vit import BeitViT, exempt_from_decay, layer_of
from zoo.nn.normalisation import Normalisation, normalise
from zoo.tokens import as_pixels


class BeitTrunk:
    """Sizes, pixels, layers and features of a module whose network is ``vit``; stands in front of its other bases."""

    vit: BeitViT
    normalisation: Normalisation
    decay_convention: Literal["unilm", "timm"]

    @property
    def image_size(self) -> int | tuple[int, int]:
        """Side of the images in pixels, or (height, width) of those that are no squares."""
        return self.vit.image_size

    def no_decay(self, name: str, parameter: nn.Parameter) -> bool:
        """Tell whether a matrix-shaped parameter is exempt from weight decay, by ``decay_convention``."""
        return exempt_from_decay(name, self.decay_convention)

    def layer_of(self, name: str) -> int:
        """Layer index of a parameter for layer-wise learning rates, 0 at the input."""
        return layer_of(name.removeprefix("vit."), self.vit.depth)

    @property
    def num_layers(self) -> int:
        """Index of the topmost layer group of :meth:`layer_of`."""
        return self.vit.depth + 1

    def to_network_range(self, images: Shaped[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Check pixels and normalise them for the transformer.

        Args:
            images: in [0, 1] or uint8, of ``image_size``.

        Raises:
            ValueError: for images of another size, type or range.
        """
        return normalise(as_pixels(images, size=self.vit.image_sides), self.normalisation)

    def forward_intermediates(
        self, images: Shaped[Tensor, "b 3 h w"], indices: int | list[int] | tuple[int, ...] | None = None
    ) -> list[Float[Tensor, "b d gh gw"]]:
        """Raw feature maps after some blocks, see :meth:`zoo.nn.beit_vit.BeitViT.forward_intermediates`."""
        return self.vit.forward_intermediates(self.to_network_range(images), indices)
