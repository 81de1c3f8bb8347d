"""Pixels of a generation embedding: through our own small decoder, or diffusers' unCLIP pipeline from a folder."""

import inspect
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from zoo.registry import model_from
from zoo.tokens import Tokenizer
from zoo.tokens.abilities import ImageDecoder


@runtime_checkable
class UnclipPipeline(Protocol):
    """A pipeline of diffusers that normalises image embeddings, which those of unCLIP do."""

    image_normalizer: Any


def unclip_pipeline(folder: str | Path, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """The image-variation pipeline of Stable Diffusion 2.1 unCLIP. Nothing is downloaded.

    Args:
        folder: a local copy of ``stabilityai/stable-diffusion-2-1-unclip``.
        dtype: of its weights.
        device: it runs on.

    Raises:
        FileNotFoundError: for a folder that holds no pipeline.
        ModuleNotFoundError: with the pip line.
    """
    if not (Path(folder) / "model_index.json").is_file():
        raise FileNotFoundError(f"{folder} is no folder of a diffusers pipeline: it has no model_index.json")
    try:
        from diffusers import StableUnCLIPImg2ImgPipeline
    except ImportError:
        raise ModuleNotFoundError("unCLIP needs the package diffusers: pip install 'tokenzoo[unclip]'") from None
    from zoo.checkpoints.folders import check_pipeline_folder

    check_pipeline_folder(Path(folder))
    pipeline: Any = StableUnCLIPImg2ImgPipeline
    return pipeline.from_pretrained(folder, local_files_only=True).to(device, dtype)


def check_decoder(decoder: Any, settings: dict[str, Any]) -> None:
    """Refuse what draws no generation embeddings.

    Raises:
        ValueError: without a decoder, for one of another kind, or for settings that it does not take.
    """
    if decoder is None:
        raise ValueError(
            "SEED's tokens decode to a generation embedding, not to pixels: give a decoder, 'seed_pixels_emoji' for "
            "the emoji tokenizer, or zoo.vision.unclip.unclip_pipeline(FOLDER) for SEED-2"
        )
    own = isinstance(decoder, str | ImageDecoder)
    if own and settings:
        raise ValueError(f"{', '.join(settings)}: only a pipeline of diffusers takes settings, this decoder has none")
    takes = callable(decoder) and "image_embeds" in inspect.signature(decoder.__call__).parameters
    if not own and not (takes and isinstance(decoder, UnclipPipeline)):
        raise ValueError(
            f"a {type(decoder).__name__} cannot draw generation embeddings: give a model with images_of, or a "
            "StableUnCLIPImg2ImgPipeline"
        )


def find_decoder(decoder: Any, settings: dict[str, Any], shape: tuple[int, ...], device: torch.device) -> Any:
    """The decoder for generation embeddings of that shape: the model of a name, anything else as it is.

    Raises:
        ValueError: without a decoder, for one of another width or kind, or for settings that it does not take.
    """
    check_decoder(decoder, settings)
    if isinstance(decoder, str):
        decoder = model_from(decoder).eval().to(device)
        check_decoder(decoder, settings)
    if not isinstance(decoder, ImageDecoder):
        wanted = decoder.image_normalizer.mean.shape[-1]
        if shape != (wanted,):
            raise ValueError(f"the pipeline wants vectors of width {wanted}, these are {shape}")
    elif isinstance(decoder, Tokenizer) and shape != (decoder.spec.dim,):
        raise ValueError(
            f"this decoder draws vectors of width {decoder.spec.dim}, these are {shape}: take the tokenizer that it "
            "was trained with"
        )
    return decoder


@torch.no_grad()
def pixels_of_embedding(
    embedding: Float[Tensor, "b ..."], decoder: Any = None, **settings: Any
) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1] of generation embeddings.

    Args:
        embedding: one vector per image, or 77 of SEED-1, which no decoder here draws.
        decoder: see :meth:`zoo.models.seed_stage2.SEEDTokenizer.decode_pixels`.
        settings: of a pipeline; by default no noise on the embedding, 20 steps and guidance 10, as published.

    Raises:
        ValueError: without a decoder, or for one of another width or kind.
    """
    decoder = find_decoder(decoder, settings, tuple(embedding.shape[1:]), embedding.device)
    if isinstance(decoder, ImageDecoder):
        return decoder.images_of(embedding)
    defaults = {"prompt": [""] * len(embedding), "noise_level": 0, "num_inference_steps": 20, "guidance_scale": 10.0}
    device = getattr(decoder, "_execution_device", decoder.unet.device)  # the U-Net's, but for one that is offloaded
    vectors = embedding.to(device, decoder.unet.dtype)
    found = decoder(image_embeds=vectors, output_type="pt", **(defaults | settings)).images
    return torch.as_tensor(found).float().clamp(0, 1)
