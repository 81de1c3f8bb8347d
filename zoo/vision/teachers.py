"""Frozen teachers that give one vector for a whole image, by name: what a generation embedding is to be."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints.config_files import read_config_beside
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.format import check_positions
from zoo.checkpoints.published.clip import CLIP_MEAN, CLIP_POSITIONS, CLIP_STD, check_clip
from zoo.checkpoints.unused_entries import report_unused_entries
from zoo.nn.efficientnet_lite0 import HEAD_CHANNELS
from zoo.vision.encoders import Lite0Map, VisionTower

CLIP_H = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "patch_size": 14,
    "projection_dim": 1024,
}  # hidden_act of the published folder is gelu
EMBEDDERS = ("clip_vit_h14:PATH", "clip_vit_h14:random", "lite0", "tiny_random", "tiny_random:WIDTH")
TINY_CELLS = 4


class ImageEmbedder(VisionTower):
    """One vector per image, without gradients; a :class:`zoo.vision.encoders.VisionTower` with a single token."""

    def embed(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Vectors of images in [0, 1]."""
        return self(images)[:, 0]


def image_embedder(reference: str, image_size: int, cache: int = 0) -> ImageEmbedder:
    """The teacher that a recipe names. Nothing is downloaded, and no pickle is executed.

    Args:
        reference: ``clip_vit_h14:PATH`` (``image_embeds`` of a ``CLIPVisionModelWithProjection`` folder, such as the
            ``image_encoder`` of stabilityai/stable-diffusion-2-1-unclip; not normalised), ``lite0`` (the average of
            EfficientNet-Lite0's last feature map, which its classifier reads; weights from a pip package), or
            ``tiny_random[:WIDTH]`` (for tests).
        image_size: side of the images in pixels.
        cache: images whose vectors are kept, see :class:`zoo.vision.encoders.VisionTower`.

    Raises:
        ValueError: for an unknown name or an image size that does not fit.
        FileNotFoundError: for weights that are not there.
    """
    name, _, source = reference.partition(":")
    on_meta = torch.empty(0).device.type == "meta"
    if name == "clip_vit_h14":
        if image_size % CLIP_H["patch_size"]:
            raise ValueError(f"image_size {image_size} is not divisible by 14, the patch size of CLIP")
        network = None if on_meta else _ClipEmbeds(image_size, source)
        return ImageEmbedder(network, CLIP_H["projection_dim"], 1, CLIP_MEAN, CLIP_STD, cache=cache)
    if name == "lite0" and not source:
        return ImageEmbedder(None if on_meta else _Lite0Pooled(), HEAD_CHANNELS, 1, (0.0,), (1.0,), cache=cache)
    if name == "tiny_random":
        width = int(source or 16)
        return ImageEmbedder(_RandomEmbeds(width), width, 1, (0.5,), (0.5,), cache=cache)
    raise ValueError(f"there is no teacher {reference!r}: it is one of {', '.join(EMBEDDERS)}")


class _ClipEmbeds(nn.Module):
    """CLIP's image embedding, behind its projection."""

    def __init__(self, image_size: int, source: str):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        if not source:
            raise FileNotFoundError(
                "the weights of clip_vit_h14 are not in the package and are never downloaded by themselves: get the "
                "image_encoder folder of stabilityai/stable-diffusion-2-1-unclip and write 'clip_vit_h14:PATH'"
            )
        self.model: Any = CLIPVisionModelWithProjection(
            CLIPVisionConfig(**CLIP_H, image_size=image_size, hidden_act="gelu")
        )
        if source != "random":
            own = self.model.state_dict()
            check_clip(read_config_beside(Path(source)), self.model.config, source)
            file = read_checkpoint(Path(source)).state
            counted = check_positions(file, [name for name in file if name.endswith(CLIP_POSITIONS)])
            state = {name: value.float() for name, value in file.items() if name in own}
            report_unused_entries(source, file, {*state, *counted})
            if missing := [name for name in own if name not in state and "position_ids" not in name]:
                raise ValueError(f"{source} holds no CLIP ViT-H/14 with projection: it lacks {', '.join(missing[:5])}")
            self.model.load_state_dict(own | state)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(pixel_values=images).image_embeds[:, None]


class _Lite0Pooled(Lite0Map):
    """The mean over the cells of EfficientNet-Lite0's last feature map."""

    def forward(self, images: Tensor) -> Tensor:
        return self.model.forward_features(2 * images - 1).mean((2, 3))[:, None]


class _RandomEmbeds(nn.Module):
    """A random linear map of a small copy of the image, always the same."""

    def __init__(self, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(width, 3 * TINY_CELLS**2, generator=generator, device="cpu")
        self.weight = nn.Parameter(weight.to(torch.empty(0).device))

    def forward(self, images: Tensor) -> Tensor:
        small = torch.nn.functional.adaptive_avg_pool2d(images, TINY_CELLS).flatten(1)
        return (small @ self.weight.t())[:, None]
