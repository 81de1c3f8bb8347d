"""``VQModel`` of diffusers: the same networks as taming's under other names, read and written.

Attention projections are linear layers there and 1x1 convolutions here; ``up_blocks`` stand in the order in which they
run.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from zoo.checkpoints.export import write_folder
from zoo.checkpoints.folders import read_json
from zoo.checkpoints.format import Converted, Format, State
from zoo.checkpoints.published.taming import add_discriminator

FILE = "diffusion_pytorch_model.safetensors"
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}  # before diffusers 0.15
MIDDLE = {"block_1": "resnets.0", "attn_1": "attentions.0", "block_2": "resnets.1"}


def to_diffusers_name(name: str, levels: int) -> str:
    """Rename a parameter of taming as diffusers spells it."""
    name = name.replace("nin_shortcut", "conv_shortcut").replace("norm_out", "conv_norm_out")
    for ours, theirs in ATTENTION.items():
        name = re.sub(rf"(attn(?:_1|\.\d+))\.{ours}\.", rf"\1.{theirs}.", name)
    for ours, theirs in MIDDLE.items():
        name = name.replace(f".mid.{ours}.", f".mid_block.{theirs}.")
    name = re.sub(r"\.up\.(\d+)\.", lambda m: f".up_blocks.{levels - 1 - int(m[1])}.", name)
    name = re.sub(r"\.down\.(\d+)\.", r".down_blocks.\1.", name)
    name = re.sub(r"(_blocks\.\d+)\.block\.", r"\1.resnets.", name)
    name = re.sub(r"(_blocks\.\d+)\.attn\.", r"\1.attentions.", name)
    return re.sub(r"\.(up|down)sample\.conv\.", r".\1samplers.0.conv.", name)


def matches(state: State) -> bool:
    """Recognise diffusers' middle block and a codebook."""
    return "encoder.mid_block.resnets.0.norm1.weight" in state and "quantize.embedding.weight" in state


def convert(state: State, model: nn.Module) -> Converted:
    """Rename to taming's names; what the model has no place for keeps its name and is refused."""
    modern = {}
    for name, value in state.items():
        for old, new in OLD_ATTENTION.items():
            name = re.sub(rf"(attentions\.\d+)\.{old}\.", rf"\1.{new}.", name)
        modern[name] = value
    own = {name: v for name, v in model.state_dict().items() if not name.startswith("discriminator.")}
    levels = 1 + max(int(m[1]) for name in state if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", name)))
    names = {to_diffusers_name(name, levels): name for name in own}
    kept = {}
    for name, value in modern.items():
        ours = names.get(name, name)
        linear = ours in own and own[ours].ndim == 4 and value.ndim == 2
        kept[ours] = value[:, :, None, None] if linear else value
    kept, fresh = add_discriminator(kept, {}, model, "discriminator.")
    return Converted(kept, newly_initialised=fresh)


#: fields of ``VQModel`` and the values that its code gives to those that a ``config.json`` leaves out
DEFAULTS: dict[str, Any] = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"], "block_out_channels": [64], "layers_per_block": 1, "act_fn": "silu",
    "latent_channels": 3, "sample_size": 32, "num_vq_embeddings": 256, "norm_num_groups": 32, "vq_embed_dim": None,
    "scaling_factor": 0.18215, "norm_type": "group", "mid_block_add_attention": True, "lookup_from_codebook": False,
    "force_upcast": False,
}  # fmt: skip
SIZES = ("layers_per_block", "latent_channels", "num_vq_embeddings", "norm_num_groups")


def read_constructor_arguments(folder: str | Path, image_size: int | None = None) -> dict[str, Any]:
    """Read the arguments of our ``VQGAN`` from the ``config.json`` in a folder of diffusers.

    Args:
        folder: with the file; fields that it leaves out have the defaults of ``VQModel``.
        image_size: side of the images in pixels; None takes ``sample_size``, which diffusers itself never reads.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: naming a field that is not supported, or unknown.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    config = read_json(path)
    if config.get("_class_name") != "VQModel":
        raise ValueError(f"{path} is of the class {config.get('_class_name')}, only VQModel is read")
    if image_size is None and config.get("sample_size") is None:
        rank_zero_info(
            f"{path} has no sample_size: image_size is {DEFAULTS['sample_size']}, the default of VQModel; give "
            "image_size for another"
        )
    return _read_arguments(config, str(path), image_size)


def _read_arguments(config: Mapping[str, Any], path: str, image_size: int | None) -> dict[str, Any]:
    if unknown := sorted(name for name in config if name not in DEFAULTS and not name.startswith("_")):
        raise ValueError(f"{path}: the field {', '.join(unknown)} is unknown, so what it changes is too")
    known = {name: config.get(name, default) for name, default in DEFAULTS.items()}
    widths, kinds = known["block_out_channels"], known["down_block_types"]
    if not _are_counts(widths) or not isinstance(kinds, list) or len(kinds) != len(widths):
        raise ValueError(
            f"{path}: block_out_channels {widths} and down_block_types {kinds} must be lists with one entry per level"
        )
    expected = {
        "in_channels": 3, "out_channels": 3, "act_fn": "silu", "norm_type": "group",
        "up_block_types": [str(k).replace("Down", "Up").replace("Encoder", "Decoder") for k in reversed(kinds)],
    }  # fmt: skip
    for name, value in expected.items():
        if known[name] != value:
            raise ValueError(f"{path}: {name} {known[name]} is not supported, only {value} is")
    if unknown := sorted(set(kinds) - {"DownEncoderBlock2D", "AttnDownEncoderBlock2D"}):
        raise ValueError(f"{path}: the block {unknown[0]} is not supported")
    if any(width % widths[0] for width in widths):
        raise ValueError(f"{path}: block_out_channels {widths} are not multiples of the first")
    sizes = {name: known[name] for name in SIZES}
    sizes["vq_embed_dim"] = known["vq_embed_dim"] or known["latent_channels"]
    size = known["sample_size"] if known["sample_size"] is not None else DEFAULTS["sample_size"]
    if isinstance(size, list) and len(set(size)) == 1:
        size = size[0]
    sizes["sample_size"] = size if image_size is None else image_size
    for name, value in sizes.items():
        if not _are_counts([value]):
            raise ValueError(f"{path}: {name} is a whole number from 1, not {value!r}")
    if not isinstance(known["mid_block_add_attention"], bool):
        raise ValueError(f"{path}: mid_block_add_attention is true or false, not {known['mid_block_add_attention']!r}")
    size = sizes["sample_size"]
    return {
        "image_size": size,
        "width": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "blocks": sizes["layers_per_block"],
        "attention": tuple(size // 2**i for i, kind in enumerate(kinds) if kind.startswith("Attn")),
        "mid_attention": known["mid_block_add_attention"],
        "norm_groups": sizes["norm_num_groups"],
        "z_channels": sizes["latent_channels"],
        "codebook": {"vocab_size": sizes["num_vq_embeddings"], "width": sizes["vq_embed_dim"]},
    }


def _are_counts(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in values)
    )


def check_config(config: Mapping[str, Any], model: nn.Module) -> tuple[str, ...]:
    """Compare the groups of the normalisation, which no tensor shows, with the model.

    Raises:
        ValueError: where the configuration says something else, or nothing that we read.
    """
    if config.get("_class_name") != "VQModel":
        return ()
    args: Any = model.hparams
    groups = _read_arguments(config, "config.json beside these weights", args["image_size"])["norm_groups"]
    if groups != args["norm_groups"]:
        raise ValueError(
            f"config.json beside these weights says norm_num_groups {groups}, and this model has "
            f"{args['norm_groups']}: set norm_groups to {groups}, or build it by VQGAN.from_diffusers_config"
        )
    return ()


VQMODEL = Format("VQModel of diffusers", matches, convert, check_config=check_config)


def save_diffusers(model: nn.Module, folder: str | Path) -> Path:
    """Write a VQGAN in the layout of diffusers, for ``VQModel.from_pretrained(folder)``.

    Args:
        model: a VQGAN of taming's architecture with a codebook trained by gradients.
        folder: gets ``config.json`` and the weights.

    Raises:
        ValueError: for a model that ``VQModel`` cannot hold.
    """
    args = dict(model.hparams)  # type: ignore[arg-type]
    codebook = args.get("codebook")
    quantizer = None if codebook is None else codebook.quantizer
    if args.get("architecture") != "taming" or codebook is None or quantizer != "vq":
        raise ValueError(
            f"diffusers' VQModel holds taming's networks with quantizer vq, not {args.get('architecture')} with "
            f"{quantizer}"
        )
    if args.get("channels") != 3:
        raise ValueError(
            "only VQGANs of RGB images are written for diffusers, this one sees depth maps (channels is 1)"
        )
    size, levels = args["image_size"], len(args["multipliers"])
    attention = [size // 2**i in args["attention"] for i in range(levels)]
    config = {
        "_class_name": "VQModel",
        "act_fn": "silu",
        "block_out_channels": [args["width"] * m for m in args["multipliers"]],
        "down_block_types": [f"{'Attn' * a}DownEncoderBlock2D" for a in attention],
        "up_block_types": [f"{'Attn' * a}UpDecoderBlock2D" for a in reversed(attention)],
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": args["z_channels"],
        "layers_per_block": args["blocks"],
        "lookup_from_codebook": False,
        "mid_block_add_attention": args["mid_attention"],
        "norm_num_groups": args["norm_groups"],
        "norm_type": "group",
        "num_vq_embeddings": codebook.vocab_size,
        "sample_size": size,
        "vq_embed_dim": codebook.width,
    }
    state: dict[str, Tensor] = {}
    parts = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.", "quantize.embedding.")
    for name, value in model.state_dict().items():
        if name.startswith(parts):
            theirs = to_diffusers_name(name, levels)
            linear = ".attentions." in theirs and value.ndim == 4
            state[theirs] = value[:, :, 0, 0] if linear else value
    return write_folder(folder, config, state, FILE)
