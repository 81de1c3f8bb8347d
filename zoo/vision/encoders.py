"""Frozen image encoders by name, for the models that put continuous tokens of them into a language model."""

from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from zoo.checkpoints.config_files import read_config_beside
from zoo.checkpoints.files import read_checkpoint
from zoo.checkpoints.format import check_positions
from zoo.checkpoints.published.clip import (
    CLIP_MEAN,
    CLIP_POSITIONS,
    CLIP_STD,
    check_clip,
    check_pixels,
    count_blocks_until,
    find_clip_config,
)
from zoo.checkpoints.published.eva import eva_fields, eva_sizes, to_lavis_names
from zoo.checkpoints.unused_entries import entries_of, report_unused_entries, track_entries, untrack_entries
from zoo.nn.efficientnet_lite0 import HEAD_CHANNELS, TAP_STRIDES, efficientnet_lite0
from zoo.nn.eva_vit import EvaViT, resize_positions
from zoo.tokens.precision import without_autocast, without_tf32

LN_VISION_EPS = 1e-5  # of the norm behind an image encoder in LAVIS, unlike the encoder's own 1e-6
EVA_ORIGIN = "https://storage.googleapis.com/sfr-vision-language-research/LAVIS/models/BLIP2/eva_vit_g.pth"
TOWERS = (
    "eva_vit_g:PATH", "eva_vit_g:random", "eva:PATH", "clip_vit_l14:PATH", "clip_vit_l14:random", "clip:PATH", "lite0",
    "blind", "tiny_random", "tiny_random:WIDTH", "tiny_clip", "tiny_eva",
)  # fmt: skip
TINY_PATCH = 8
CLIP_SIZES = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
TINY_EVA = {"patch_size": 8, "width": 32, "depth": 2, "heads": 4, "mlp_width": 48}
TINY_CLIP = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "patch_size": 8,
}


class VisionTower(nn.Module):
    """Tokens of images in [0, 1], without gradients.

    Args:
        network: from normalised images to tokens; None on the meta device, where no weights are read.
        width: of the tokens.
        num_tokens: per image.
        mean: subtracted from the pixels.
        std: divides them.
        class_token: whether the first token stands for the whole image.
        cache: images whose tokens are kept in memory, by their pixels; the later ones are computed each time. Worth it
            for data without augmentation. With a cache all tokens are computed and returned in float32, without
            autocast and TF32, so that it does not matter who asked first; without, in the precision of the run.
    """

    mean: Float[Tensor, "1 c 1 1"]
    std: Float[Tensor, "1 c 1 1"]

    def __init__(
        self,
        network: nn.Module | None,
        width: int,
        num_tokens: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        class_token: bool = False,
        cache: int = 0,
    ):
        super().__init__()
        self.network, self.width, self.num_tokens, self.class_token = network, width, num_tokens, class_token
        self.cache_size = cache
        self._cache: dict[bytes, Tensor] = {}
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    @property
    def clip(self) -> "_Clip | None":
        """The network where it is a CLIP, whose configuration readers compare, else None."""
        return self.network if isinstance(self.network, _Clip) else None

    @torch.no_grad()
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b n d"]:
        """Tokens, in raster order where they are cells of a grid, a class token in front."""
        if not len(images):  # of which CLIP cannot tell how many heads it has
            return images.new_zeros(0, self.num_tokens, self.width)
        return self._cached(images) if self.cache_size else self._tokens(images)

    def _tokens(self, images: Tensor) -> Tensor:
        assert self.network is not None
        return self.network((images - self.mean) / self.std)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _cached(self, images: Tensor) -> Tensor:
        with without_autocast(images.device), without_tf32():
            return self._kept(images.float())

    def _kept(self, images: Tensor) -> Tensor:
        keys = [blake2b(image.numpy().tobytes(), digest_size=16).digest() for image in images.detach().cpu()]
        new = [i for i, key in enumerate(keys) if key not in self._cache]
        found = dict(zip(new, self._tokens(images[new]), strict=True)) if new else {}
        for i in new[: max(0, self.cache_size - len(self._cache))]:
            self._cache[keys[i]] = found[i].cpu()
        return torch.stack([found[i] if i in found else self._cache[k].to(images.device) for i, k in enumerate(keys)])


def vision_tower(reference: str, image_size: int, cache: int = 0, layer: int | None = None) -> VisionTower:
    """The image encoder that a recipe names. Nothing is downloaded, and no pickle is executed.

    Args:
        reference: ``eva_vit_g:PATH`` (BLIP-2's: its own file, or a folder of ``Blip2ForConditionalGeneration``) or
            ``clip_vit_l14:PATH`` (a folder of CLIP or LLaVA in transformers' layout; its tokens are the input of the
            last block, which BLIP-2 and LLaVA take), both with ``random`` for random weights; ``eva:PATH`` (an EVA of
            the same architecture and any size, as the file's tensors show, see
            :func:`zoo.checkpoints.published.eva.eva_sizes`); ``clip:PATH`` (CLIP of any size, as the folder's
            ``config.json`` says); ``lite0`` (the 1,280 channels of
            EfficientNet-Lite0's last feature map, stride 32, weights from a pip package); ``blind`` (one token, the
            same for every image: what is reached without seeing); ``tiny_random[:WIDTH]``, ``tiny_clip`` and
            ``tiny_eva`` (for tests).
        image_size: side of the images in pixels.
        cache: images whose tokens are kept, see :class:`VisionTower`.
        layer: of CLIP, the hidden state that is taken: 0 goes into the first block, -1 comes out of the last. None
            takes what the ``config.json`` of a LLaVA in that folder says, else -2.

    Raises:
        ValueError: for an unknown name, an image size that does not fit, or a folder whose configuration says what is
            not implemented.
        FileNotFoundError: for weights that are not there.
    """
    name, _, source = reference.partition(":")
    on_meta = torch.empty(0).device.type == "meta"
    if cache < 0:
        raise ValueError(f"vision_cache must not be negative, got {cache}")
    if name in ("eva_vit_g", "tiny_eva") or (name == "eva" and source):
        sizes = TINY_EVA if name == "tiny_eva" else _eva_sizes(source) if name == "eva" else {}
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the same tower each time where no weights are read
            network: Any = EvaViT(image_size, **sizes)
        if name != "tiny_eva" and not on_meta and source != "random":
            network.load_state_dict(_eva_weights(source, network, name))
        return VisionTower(network, network.width, network.num_tokens, CLIP_MEAN, CLIP_STD, True, cache)
    if name in ("clip_vit_l14", "tiny_clip") or (name == "clip" and source):
        config = read_config_beside(Path(source)) if source not in ("", "random") else {}
        vision = find_clip_config(config) or {}
        sizes = {"tiny_clip": TINY_CLIP, "clip_vit_l14": CLIP_SIZES}.get(name) or _clip_sizes(vision, source)
        sizes = sizes | {"num_hidden_layers": int(vision.get("num_hidden_layers", sizes["num_hidden_layers"]))}
        clip = _Clip(image_size, sizes, on_meta, count_blocks_until(layer, config, sizes["num_hidden_layers"]))
        if name != "tiny_clip" and not on_meta and source != "random":
            clip.load(source)
        return VisionTower(clip, clip.width, clip.num_tokens, CLIP_MEAN, CLIP_STD, True, cache)
    if name == "blind" and not source:
        return VisionTower(_Blind(), 1, 1, (0.0,), (1.0,))
    stride = TAP_STRIDES[-1] if name == "lite0" else TINY_PATCH
    if name not in ("lite0", "tiny_random") or (name == "lite0" and source):
        raise ValueError(f"there is no image encoder {reference!r}: it is one of {', '.join(TOWERS)}")
    if image_size % stride:
        raise ValueError(f"image_size {image_size} is not divisible by {stride}, which {name} needs")
    cells = (image_size // stride) ** 2
    if name == "lite0":
        network = None if on_meta else Lite0Map()
        return VisionTower(network, HEAD_CHANNELS, cells, (0.0,), (1.0,), cache=cache)
    width = int(source or 32)
    return VisionTower(_RandomPatches(width), width, cells, (0.5,), (0.5,), cache=cache)


def _clip_sizes(vision: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Fields of ``CLIPVisionConfig`` for a CLIP of any size, from its ``config.json``."""
    from transformers import CLIPVisionConfig

    if not vision:
        raise ValueError(f"{source} says nothing of a CLIP: 'clip:PATH' needs a folder with its config.json")
    try:
        config = CLIPVisionConfig(**vision).to_dict()
    except Exception as error:  # of transformers, whose checks raise kinds of their own
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"transformers cannot build the CLIP that config.json of {source} describes: {reason}"
        ) from None
    return {name: config[name] for name in (*CLIP_SIZES, "hidden_act", "layer_norm_eps")}


def _eva_sizes(source: str) -> dict[str, int]:
    """Constructor arguments for an EVA of any size, from its file."""
    if source == "random":
        raise ValueError("the size of 'eva' is that of its file: write 'eva:PATH', or 'eva_vit_g:random'")
    return eva_sizes(to_lavis_names(read_checkpoint(Path(source)).state), read_config_beside(Path(source)), source)


def _eva_weights(source: str, network: EvaViT, name: str = "eva_vit_g") -> dict[str, Tensor]:
    if not source:
        raise FileNotFoundError(
            f"the weights of eva_vit_g are not in the package and are never downloaded by themselves: get "
            f"{EVA_ORIGIN} and write 'eva_vit_g:PATH', or 'eva_vit_g:random' to use it untrained"
        )
    own = network.state_dict()
    config = read_config_beside(Path(source))
    if vision := config.get("vision_config"):  # a BLIP-2 of transformers
        eva_fields(network).check(vision, f"config.json of {source}")
    check_pixels(source)
    file = track_entries(read_checkpoint(Path(source)).state)
    state = {key: value.float() for key, value in to_lavis_names(file).items() if key in own}
    report_unused_entries(source, file, entries_of(state.values()))
    state = untrack_entries(state)
    if missing := [key for key in own if key not in state]:  # the file holds block 40 and a head too
        raise ValueError(f"{source} is no {name}: it lacks {', '.join(missing[:5])}")
    wrong = [key for key, value in own.items() if key != "pos_embed" and state[key].shape != value.shape]
    if wrong:
        raise ValueError(
            f"{source} is no {name}: {wrong[0]} is {tuple(state[wrong[0]].shape)} in the file and "
            f"{tuple(own[wrong[0]].shape)} here; 'eva:PATH' takes an EVA of another size"
        )
    state["pos_embed"] = resize_positions(state["pos_embed"], network.num_tokens)
    return state


class _Clip(nn.Module):
    """CLIP's vision transformer without its last blocks and norm: what goes into them, class token first."""

    def __init__(self, image_size: int, sizes: Mapping[str, Any], on_meta: bool, blocks: int | None = None):
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModel

        patch = sizes["patch_size"]
        if image_size % patch:
            raise ValueError(f"image_size {image_size} is not divisible by {patch}, the patch size of CLIP")
        self.width, self.num_tokens = sizes["hidden_size"], (image_size // patch) ** 2 + 1
        self.depth = int(sizes["num_hidden_layers"])
        self.taken = self.depth - 1 if blocks is None else blocks  # hidden state: blocks in front of it
        with torch.random.fork_rng([]):
            torch.manual_seed(0)  # the same tower each time where no weights are read
            self.model = CLIPVisionModel(
                CLIPVisionConfig(**dict(sizes) | {"num_hidden_layers": self.taken}, image_size=image_size)
            )
            if not on_meta:
                for parameter in self.model.parameters():
                    parameter.data.add_(torch.randn_like(parameter) * 0.02)

    def load(self, source: str) -> None:
        """Read the vision tower of a folder in transformers' layout, CLIP's own or LLaVA's."""
        if not source:
            raise FileNotFoundError(
                "the weights of clip_vit_l14 are not in the package and are never downloaded by themselves: get "
                "openai/clip-vit-large-patch14 or -336 as a folder and write 'clip_vit_l14:PATH', or "
                "'clip_vit_l14:random' to use it untrained"
            )
        check_clip(read_config_beside(Path(source)), self.model.config, source)
        check_pixels(source)
        own = self.model.state_dict()
        state, file = {}, track_entries(read_checkpoint(Path(source)).state)
        for name, value in file.items():
            name = name.rpartition("vision_tower.")[2].removeprefix("vision_model.")
            for target in (name, f"vision_model.{name}"):  # transformers 5 dropped the inner name
                if target in own:
                    state[target] = value.float()
        counted = check_positions(file, [name for name in file if name.endswith(CLIP_POSITIONS)])
        report_unused_entries(source, file, entries_of(state.values()).union(counted))
        state = untrack_entries(state)
        position = next(name for name in own if name.endswith("position_embedding.weight"))
        if missing := [n for n in own if n not in state and "post_layernorm" not in n and "position_ids" not in n]:
            raise ValueError(f"{source} holds no CLIP ViT-L/14: it lacks {', '.join(missing[:5])}")
        state[position] = resize_positions(state[position][None], self.num_tokens)[0]
        if wrong := [name for name, value in state.items() if value.shape != own[name].shape]:
            raise ValueError(
                f"{source} holds another image encoder than this one: {wrong[0]} is {tuple(state[wrong[0]].shape)} in "
                f"the file and {tuple(own[wrong[0]].shape)} here"
            )
        self.model.load_state_dict(own | state)

    def forward(self, images: Tensor) -> Tensor:
        if self.taken == 0:  # transformers notes what comes out of blocks, and there are none
            vision: Any = getattr(self.model, "vision_model", self.model)
            return vision.pre_layrnorm(vision.embeddings(images))
        return self.model(pixel_values=images, output_hidden_states=True).hidden_states[-1]


class _Blind(nn.Module):
    """One zero for every image."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 1, 1)


class Lite0Map(nn.Module):
    """Cells of EfficientNet-Lite0's last feature map, what its classifier averages."""

    def __init__(self) -> None:
        super().__init__()
        self.model = efficientnet_lite0()

    def train(self, mode: bool = True) -> "Lite0Map":
        """Stays in eval mode, with the statistics of its weights."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        return rearrange(self.model.forward_features(2 * images - 1), "b d gh gw -> b (gh gw) d")


class _RandomPatches(nn.Module):
    """A random linear map of patches, always the same."""

    def __init__(self, width: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = (width, 3 * TINY_PATCH**2)
        weight = torch.randn(size, generator=generator, device="cpu") / size[1] ** 0.5
        self.weight = nn.Parameter(weight.to(torch.empty(0).device))

    def forward(self, images: Tensor) -> Tensor:
        patches = rearrange(images, "b c (gh p1) (gw p2) -> b (gh gw) (c p1 p2)", p1=TINY_PATCH, p2=TINY_PATCH)
        return patches @ self.weight.t()
