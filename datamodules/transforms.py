"""The augmentations and crops of the papers: from the pixels of a file to the images of a batch.

Every transform takes one uint8 ``3 h w`` tensor and returns the entries that it adds to the batch: ``image``, and
``token_image`` where the tokenizer sees a view of its own. Nothing is normalised here; each model owns that.

Training: ``none``, ``flip``, ``shift_scale`` (ours), ``dalle`` (DALL-E, Listing 1), ``beit`` (BEiT, pre-training),
``finetune`` (BEiT, Appendix H), ``blip`` (BLIP-2). Evaluation: ``beit`` and ``dalle``, which differ in crop and filter,
``squash`` (BLIP-2, SEED) and ``pad`` (LLaVA-1.5), which show the whole image.
Resizing by bicubic and Lanczos filters is Pillow's, as in the papers' code.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from datamodules.sizes import Size, crop_ratios, square_side
from zoo.choices import one_of
from zoo.tokens import sides_of

TrainTransform = Literal["none", "flip", "shift_scale", "dalle", "beit", "finetune", "blip", "area"]
EvalTransform = Literal["beit", "dalle", "squash", "pad", "clip"]
TRAIN_TRANSFORMS = ("none", "flip", "shift_scale", "dalle", "beit", "finetune", "blip", "area")
EVAL_TRANSFORMS = ("beit", "dalle", "squash", "pad", "clip")
PADDING = (122, 116, 104)  # LLaVA-1.5: 255 times CLIP's mean, cut off
EXTREME = 16  # a strip that is longer than so many times its width is cut, or resized in another order, to stay small
Views = dict[str, Tensor]
Transform = Callable[[Tensor], Views]


class ImageTooSmall(ValueError):
    """An image has fewer pixels than a crop needs."""


def make_train_transform(
    name: str,
    size: Size,
    token_size: Size | None = None,
    crop_scale: Sequence[float] = (0.08, 1.0),
    resting: str = "beit",
) -> Transform:
    """The training transform of that name.

    Args:
        name: one of ``TRAIN_TRANSFORMS``.
        size: side of ``image``, or (height, width), in pixels; ``shift_scale`` and ``dalle`` make squares.
        token_size: the same of ``token_image``; None leaves it out.
        crop_scale: area of the random crops of ``beit``, ``finetune``, ``blip`` and ``area``: a fraction of the image.
        resting: evaluation transform that ``none`` and ``flip`` start from.
    """
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(f"crop_scale must be two growing fractions in (0, 1], got {crop_scale}")
    low, high = crop_scale
    match one_of("train_transform", name, TRAIN_TRANSFORMS):
        case "beit":
            return TwoViews(size, token_size, scale=(low, high))
        case "shift_scale":
            base: Transform = ShiftScale(square_side(size, "train_transform shift_scale"))
        case "dalle":
            base = DalleCrop(square_side(size, "train_transform dalle"))
        case "finetune":
            base = FineTune(size, scale=(low, high))
        case "blip":
            base = RandomArea(size, scale=(low, high))
        case "area":
            base = RandomArea(size, scale=(low, high), mirror=False)
        case rest:
            base = make_eval_transform(resting, size)
            base = Flip(base) if rest == "flip" else base
    return base if token_size is None else WithTokenView(base, token_size)


def make_eval_transform(name: str, size: Size, token_size: Size | None = None) -> Transform:
    """The evaluation transform of that name; an image that already has the size is left as it is.

    Args:
        name: one of ``EVAL_TRANSFORMS``.
        size: side of ``image``, or (height, width), in pixels; ``pad`` makes squares.
        token_size: the same of ``token_image``, a Lanczos reduction of ``image``; None leaves it out.
    """
    height, width = sides_of(size)
    match one_of("eval_transform", name, EVAL_TRANSFORMS):
        case "dalle":
            base: Transform = CentreCrop(size, size, "lanczos")
        case "beit":
            base = CentreCrop(size, (beit_side(height), beit_side(width)), "bicubic")
        case "clip":
            base = CentreCrop(size, size, "bicubic")
        case "pad":
            base = WholeImage(square_side(size, "eval_transform pad"), padded=True)
        case _:
            base = WholeImage(size)
    return base if token_size is None else WithTokenView(base, token_size)


def beit_side(size: int) -> int:
    """Length that the shorter side gets before the centre crop: crop_pct 224/256 below 384 px, 1 from there on.

    Source: unilm ``beit/datasets.py``.
    """
    return int(size / (224 / 256)) if size < 384 else size


# ------------------------------------------------------------------ evaluation


@dataclass(frozen=True)
class CentreCrop:
    """Resize until the image covers a given size, a square's by its shorter side, then crop the centre.

    ``beit``: ``int(size / crop_pct)``, bicubic (unilm ``datasets.py``). ``dalle``: exactly ``size``, Lanczos (the
    notebook of openai/DALL-E, which refuses smaller images; here they are enlarged).

    Args:
        size: side of the crop, or (height, width), in pixels.
        side: what the image covers before the crop.
        filter: Pillow's name of the filter.
    """

    size: Size
    side: Size
    filter: str

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        height, width = image.shape[-2:]
        rows, columns = sides_of(self.size)
        if (height, width) == (rows, columns):
            return {"image": image}
        image = crop_to_ratio(image, EXTREME)  # resized as a whole, a strip of 60000x1 pixels would fill gigabytes
        height, width = image.shape[-2:]
        tall, wide = sides_of(self.side)
        # the longer side is rounded by the DALL-E notebook, cut off by torchvision's Resize that unilm uses
        cut = round if self.filter == "lanczos" else int
        upright = tall * width < wide * height  # for its place: the width decides
        shape = (cut(wide * height / width), wide) if upright else (tall, cut(tall * width / height))
        image = resize(image, shape, self.filter)
        top, left = (round((n - side) / 2) for n, side in zip(image.shape[-2:], (rows, columns), strict=True))
        return {"image": image[:, top : top + rows, left : left + columns]}


@dataclass(frozen=True)
class WholeImage:
    """The whole image, bicubic: squashed (LAVIS, SEED), or as a square that is padded with grey (LLaVA-1.5).

    Args:
        size: side of the result, or (height, width), in pixels.
        padded: keep the proportions, with the image in the middle of a square.
    """

    size: Size
    padded: bool = False

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        if self.padded and image.shape[-2] != image.shape[-1]:
            return {"image": place_on_grey(image, square_side(self.size, "padding"))}
        return {"image": resize(image, sides_of(self.size), "bicubic")}


@dataclass(frozen=True)
class WithTokenView:
    """Adds ``token_image``: the image as another transform leaves it, reduced by a Lanczos filter."""

    base: Transform
    token_size: Size

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        views = self.base(image)
        return views | {"token_image": resize(views["image"], sides_of(self.token_size), "lanczos")}


# ------------------------------------------------------------------ training


@dataclass(frozen=True)
class Flip:
    """Mirrors half of the images, after another transform."""

    base: Transform

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        return {"image": random_flip(self.base(image)["image"])}


@dataclass(frozen=True)
class ShiftScale:
    """A random square crop, resized, mirrored half of the time. Ours, in place of DALL-E's Listing 1.

    Listing 1 takes its scale from photographs that are larger than the crop. A drawing that fills its canvas has no
    such reserve, so the data module first adds a margin of background and this crop then varies position and scale:
    sides between 52/76 of the canvas and all of it (for 64 px with 6 px on each side: 52 to 76 px, that is, drawn
    between 1.23 and 0.84 times its size). Enlarging is bilinear, reducing is bilinear with antialiasing.

    Args:
        size: side of the result, in pixels.
        smallest: smallest side of the crop, as a fraction of the shorter side.
    """

    size: int
    smallest: float = 52 / 76

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        short = min(image.shape[-2:])
        crop = random_crop(image, draw(round(self.smallest * short), short))
        if crop.shape[-1] != self.size:
            # torch resizes uint8 by itself, rounding once; much faster than through floats
            crop = F.interpolate(crop[None], (self.size, self.size), mode="bilinear", antialias=True)[0]
        return {"image": random_flip(crop)}


@dataclass(frozen=True)
class DalleCrop:
    """Listing 1 of DALL-E (arXiv:2102.12092): square crop, area resize to a random side, crop, mirror.

    With s = min(h, w): a random s x s crop is reduced to t x t, t uniform over the integers from
    min(s, round(9/8 size)) to min(s, round(12/8 size)), rounded to uint8; then a random crop of ``size``.

    Args:
        size: side of the result, in pixels.
    """

    size: int

    def sides(self, short: int) -> tuple[int, int]:
        """Smallest and largest t for an image whose shorter side is ``short``."""
        return min(short, round(9 / 8 * self.size)), min(short, round(12 / 8 * self.size))

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        height, width = image.shape[-2:]
        short = min(height, width)
        if short < self.size:
            raise ImageTooSmall(f"{width}x{height} pixels hold no crop of {self.size}")
        square = random_crop(image, short)
        reduced = area_resize(square.float(), draw(*self.sides(short)))
        return {"image": random_flip(random_crop(reduced.round().clamp(0, 255).to(torch.uint8), self.size))}


@dataclass(frozen=True)
class TwoViews:
    """The two views of BEiT (arXiv:2106.08254, Section 2.4; unilm ``beit/datasets.py`` and ``transforms.py``).

    Colour jitter (brightness, contrast and saturation 0.4; no hue), mirror, then ONE random-resized crop that is
    resized twice: bicubic for the model, Lanczos for the tokenizer. The tokenizer's image is not a reduction of the
    model's, and both see the same jitter.

    Args:
        size: side of ``image``, or (height, width), in pixels.
        token_size: the same of ``token_image``; None leaves it out.
        scale: area of the crop as a fraction of the image.
        ratio: aspect ratio of the crop, in units of that of ``image``.
        jitter: strength of the colour jitter.
    """

    size: Size
    token_size: Size | None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: float = 0.4

    @cached_property
    def _jitter(self) -> Callable[[Any], Any]:
        from torchvision.transforms.v2 import ColorJitter

        return ColorJitter(self.jitter, self.jitter, self.jitter)

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        from torchvision.transforms import RandomResizedCrop

        image = random_flip(from_pil(self._jitter(to_pil(image))))
        ratio = crop_ratios(self.ratio, self.size)
        top, left, height, width = RandomResizedCrop.get_params(image, list(self.scale), ratio)
        crop = image[:, top : top + height, left : left + width]
        views = {"image": resize(crop, sides_of(self.size), "bicubic")}
        if self.token_size is not None:
            views["token_image"] = resize(crop, sides_of(self.token_size), "lanczos")
        return views


@dataclass(frozen=True)
class RandomArea:
    """One random-resized crop, bicubic, mirrored half of the time (LAVIS ``blip2_image_train``, scale 0.5 to 1).

    ``area``: never mirrored, where texts say what is left and right (MiniGPT-4's ``blip2_image_train``).

    Args:
        size: side of the result, or (height, width), in pixels.
        scale: area of the crop as a fraction of the image.
        ratio: aspect ratio of the crop, in units of that of the result.
        mirror: half of the time.
    """

    size: Size
    scale: tuple[float, float] = (0.5, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    mirror: bool = True

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        from torchvision.transforms import RandomResizedCrop

        ratio = crop_ratios(self.ratio, self.size)
        top, left, height, width = RandomResizedCrop.get_params(image, list(self.scale), ratio)
        crop = image[:, top : top + height, left : left + width]
        crop = resize(crop, sides_of(self.size), "bicubic")
        return {"image": random_flip(crop) if self.mirror else crop}


@dataclass(frozen=True)
class FineTune:
    """Fine-tuning augmentation of BEiT (Appendix H; unilm ``run_class_finetuning.py``).

    Random-resized crop (bicubic), mirror, RandAugment ``rand-m9-mstd0.5-inc1``, random erasing of one box with
    probability 0.25, filled with noise; parts and random numbers are timm's. As in timm, RandAugment replaces the
    colour jitter. The reference erases after normalising with mean and deviation 0.5; so does this, but the noise
    comes back to uint8 and is thereby cut off at black and white.

    Args:
        size: side of the result, or (height, width), in pixels.
        scale: area of the crop as a fraction of the image.
        rand_augment: policy in timm's notation.
        erasing: probability of random erasing.
    """

    size: Size
    scale: tuple[float, float] = (0.08, 1.0)
    rand_augment: str = "rand-m9-mstd0.5-inc1"
    erasing: float = 0.25

    @cached_property
    def _augment(self) -> Callable[[Any], Tensor]:
        from timm.data import create_transform

        ratio = crop_ratios((3 / 4, 4 / 3), self.size)
        whole = create_transform(
            self.size, is_training=True, scale=self.scale, ratio=ratio, auto_augment=self.rand_augment,
            color_jitter=0.4, interpolation="bicubic", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), re_prob=0.0,
            normalize=False,
        )  # fmt: skip
        for part in whole.transforms:
            for op in getattr(part, "ops", ()):
                if op.name.startswith("Posterize"):
                    op.aug_fn = posterize
        return whole

    @cached_property
    def _erase(self) -> Callable[[Tensor], Tensor]:
        from timm.data.random_erasing import RandomErasing

        return RandomErasing(self.erasing, mode="pixel", max_count=1, device="cpu")

    def __call__(self, image: UInt8[Tensor, "3 h w"]) -> Views:
        normalised = self._augment(to_pil(image)).float() / 127.5 - 1
        return {"image": ((self._erase(normalised) + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)}


# ------------------------------------------------------------------ pieces


def draw(low: int, high: int) -> int:
    """A uniform integer from ``low`` to ``high``, both included."""
    return int(torch.randint(low, high + 1, ()))


def random_flip(image: UInt8[Tensor, "c h w"]) -> UInt8[Tensor, "c h w"]:
    """Mirror with probability 1/2."""
    return image.flip(-1) if torch.rand(()) < 0.5 else image


def random_crop(image: UInt8[Tensor, "c h w"], side: int) -> UInt8[Tensor, "c s s"]:
    """A square crop at a uniform position."""
    height, width = image.shape[-2:]
    top, left = draw(0, height - side), draw(0, width - side)
    return image[:, top : top + side, left : left + side]


def area_resize(image: Float[Tensor, "c h w"], side: int) -> Float[Tensor, "c s s"]:
    """Reduce to ``side x side``; each output pixel is the exact mean of the area that it covers.

    Pillow's box filter takes whole input pixels or none of them; TensorFlow's AREA, which Listing 1 uses, takes
    fractions of pixels, and so does this.
    """
    return _area_rows(_area_rows(image, side).transpose(1, 2), side).transpose(1, 2).contiguous()


def _area_rows(image: Float[Tensor, "c h w"], side: int) -> Float[Tensor, "c h s"]:
    width = image.shape[-1]
    edges = torch.arange(side + 1, dtype=torch.float64) * (width / side)
    left = edges.floor().clamp(max=width - 1).long()
    part = (edges - left).to(image.dtype)
    before = F.pad(image.cumsum(-1), (1, 0))[..., left]  # sum of all whole pixels left of an edge
    return (before + part * image[..., left]).diff(dim=-1) * (side / width)


def resize(image: UInt8[Tensor, "3 h w"], shape: tuple[int, int], filter: str) -> UInt8[Tensor, "3 h2 w2"]:
    """Resize with one of Pillow's filters.

    Args:
        image: any size.
        shape: ``(height, width)`` of the result.
        filter: ``bicubic`` or ``lanczos``.
    """
    from PIL.Image import Resampling

    if tuple(image.shape[-2:]) == tuple(shape):
        return image
    return from_pil(to_pil(image).resize((shape[1], shape[0]), Resampling[filter.upper()]))


def crop_to_ratio(image: UInt8[Tensor, "3 h w"], ratio: int) -> UInt8[Tensor, "3 h2 w2"]:
    """Cut the long side to at most ``ratio`` times the short one, around the same centre."""
    short, long = sorted(image.shape[-2:])
    keep = ratio * short + (long - ratio * short) % 2  # as much is cut off on both sides
    return image if long <= keep else image.narrow(1 if image.shape[-2] == long else 2, (long - keep) // 2, keep)


def place_on_grey(image: UInt8[Tensor, "3 h w"], size: int) -> UInt8[Tensor, "3 s s"]:
    """Place the image in the middle of a grey square and resize it; that square, often much larger, is never held.

    Pillow resizes rows, then columns. So are these, and the result is the same to the last bit; only of a strip that
    is ``EXTREME`` and stands upright the columns go first.
    """
    height, width = image.shape[-2:]
    if height > EXTREME * width:
        return place_on_grey(image.transpose(1, 2).contiguous(), size).transpose(1, 2).contiguous()
    if width >= height:
        narrow = _between_grey(resize(image, (height, size), "bicubic"), width, 1)
    else:
        few = 1 + 2**22 // height  # rows, so that they fill some megabytes
        parts = [_between_grey(part, height, 2) for part in image.split(few, 1)]
        narrow = torch.cat([resize(part, (part.shape[1], size), "bicubic") for part in parts], 1)
    return resize(narrow, (size, size), "bicubic")


def _between_grey(image: UInt8[Tensor, "3 h w"], side: int, dim: int) -> UInt8[Tensor, "3 h2 w2"]:
    shape = [3, *image.shape[-2:]]
    shape[dim] = side
    canvas = torch.tensor(PADDING, dtype=torch.uint8)[:, None, None].expand(shape).clone()
    canvas.narrow(dim, (side - image.shape[dim]) // 2, image.shape[dim]).copy_(image)
    return canvas


def posterize(image: Any, bits: int, **_: Any) -> Any:
    """Keep the highest bits of a Pillow image. The policy also draws 0 bits, black, which Pillow 13 refuses."""
    from PIL import ImageOps

    if bits <= 0:
        return image.point(lambda _: 0)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def to_pil(image: UInt8[Tensor, "3 h w"]) -> Any:
    """A Pillow image of the same pixels."""
    from PIL import Image

    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def from_pil(image: Any) -> UInt8[Tensor, "3 h w"]:
    """A tensor of the pixels of a Pillow image; transparent pixels are shown on white."""
    import numpy as np

    if image.mode != "RGB" or "transparency" in image.info:
        image = composite_on_white(image)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def composite_on_white(image: Any) -> Any:
    """A Pillow image in RGB, composited on white where it is transparent."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("RGBA")
    canvas = Image.new("RGBA", image.size, (255, 255, 255, 255))
    canvas.alpha_composite(image)
    return canvas.convert("RGB")
