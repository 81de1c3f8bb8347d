"""VQGANs of taming-transformers and Latent Diffusion: their Lightning checkpoints and their ``config.yaml``.

Our networks keep taming's names, so the reader is a filter: ``loss.discriminator.`` loses its first word, the
perceptual network and optimizers are left behind. The first stage inside the checkpoint of a transformer or of a
diffusion model (``first_stage_model.``) is read too. These files are pickles of Lightning 1.0, whose callbacks are
stored under their class; the classes are replaced by stand-ins and nothing is executed.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from zoo.checkpoints.format import Converted, Format, State
from zoo.optim import Optim

CLASSES = (
    "pytorch_lightning.callbacks.early_stopping.EarlyStopping",
    "pytorch_lightning.callbacks.lr_monitor.LearningRateMonitor",
    "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",
    "pytorch_lightning.utilities.parsing.AttributeDict",
)
STAGE = "first_stage_model."
PARTS = ("encoder.", "decoder.", "quantize.", "quant_conv.", "post_quant_conv.")
DISCRIMINATOR = "loss.discriminator."
CODEBOOKS = ("quantize.embedding.weight", "quantize.embed.weight")
MEMORY = ("quantize.initialised", "quantize.cluster_size", "quantize.updates")
MODELS = ("VQModel", "GumbelVQ", "VQModelInterface")
OF_GUMBEL = ("kl_weight", "temperature_scheduler_config")
#: settings of the model that decide neither the network nor what it learns
WITHOUT_EFFECT = ("ckpt_path", "ignore_keys", "image_key", "colorize_nlabels", "monitor", "sane_index_shape", "use_ema")
#: settings that no released model has otherwise
UNUSUAL = {"remap": None, "scheduler_config": None, "batch_resize_range": None, "lr_g_factor": 1.0}
NO_LOSSES = ("", "DummyLoss", "Identity")  # inside a second stage
LOSS_CHECKED = ("disc_conditional", "use_actnorm", "disc_in_channels", "perceptual_loss")
LOSS_WITHOUT_EFFECT = ("pixelloss_weight", "n_classes")  # the first is stored and never read, the second is logged
NEEDED = ("in_channels", "out_ch", "resolution", "ch", "ch_mult", "num_res_blocks", "attn_resolutions", "z_channels")
DDCONFIG = {
    "double_z", "z_channels", "resolution", "in_channels", "out_ch", "ch", "ch_mult", "num_res_blocks",
    "attn_resolutions", "dropout", "attn_type", "resamp_with_conv", "give_pre_end", "tanh_out", "use_linear_attn",
}  # fmt: skip


def _select_first_stage(state: State) -> dict[str, Tensor]:
    staged = {name.removeprefix(STAGE): value for name, value in state.items() if name.startswith(STAGE)}
    return staged or dict(state)


def matches(state: State) -> bool:
    """Recognise the middle of taming's networks and one of its codebooks, without the discriminator that ours have."""
    state = _select_first_stage(state)
    ours = any(name.startswith("discriminator.") for name in state)
    return "encoder.mid.block_1.norm1.weight" in state and any(c in state for c in CODEBOOKS) and not ours


def convert(state: State, model: nn.Module) -> Converted:
    """Keep the tokenizer, and the discriminator where it fits.

    Raises:
        ValueError: for a codebook with a remapping, which is not supported.
    """
    bare = _select_first_stage(state)
    if "quantize.used" in bare:
        raise ValueError(
            f"this VQGAN maps its codes to a subset of {len(bare['quantize.used'])} (taming's remap), which is not "
            "supported: use the weights without remapping"
        )
    kept = {name: value for name, value in bare.items() if name.startswith(PARTS)}
    kept, fresh = add_discriminator(kept, bare, model, DISCRIMINATOR)
    return Converted(kept, newly_initialised=fresh)


def add_discriminator(
    kept: dict[str, Tensor], state: State, model: nn.Module, prefix: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Add the file's discriminator if it is the model's; else say why the model's starts anew.

    A model with k-means or restarts also gets what these have to remember, so that the codes of the file stay.
    """
    state_of_model = model.state_dict()
    own = {name: value for name, value in state_of_model.items() if name.startswith("discriminator.")}
    fresh = {name: "the file holds none" for name in ("lecam_means",) if name in state_of_model}
    if "quantize.embedding.weight" in kept:
        memory = {name: state_of_model[name] for name in MEMORY if name in state_of_model}
        if "quantize.initialised" in memory:
            memory["quantize.initialised"] = torch.tensor(True)
        kept = memory | kept
    if not own:
        return kept, fresh
    found = {"discriminator." + name[len(prefix) :]: v for name, v in state.items() if name.startswith(prefix)}
    if own.keys() == found.keys() and all(own[name].shape == found[name].shape for name in own):
        return kept | found, fresh
    return kept, fresh | {"discriminator.": "the file's has other sizes" if found else "the file holds none"}


VQGAN = Format("VQGAN of taming-transformers or Latent Diffusion (.ckpt)", matches, convert, CLASSES)


def read_constructor_arguments(path: str | Path) -> dict[str, Any]:
    """Read the arguments of our ``VQGAN`` from a ``config.yaml`` or ``project.yaml`` of taming or LDM.

    Args:
        path: of the file; its ``model`` section is read.

    Raises:
        FileNotFoundError: for a path that is not there.
        ValueError: naming a setting that is not supported.
    """
    from omegaconf import OmegaConf

    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no configuration {path}")
    try:
        config = OmegaConf.to_container(OmegaConf.load(path), resolve=True)
    except Exception as error:  # of yaml, for a tag that would run code too, or of an interpolation that leads nowhere
        raise ValueError(f"{path} is no configuration that can be read: {' '.join(str(error).split())[:200]}") from None
    model = config.get("model", config) if isinstance(config, Mapping) else None
    if not isinstance(model, Mapping) or "params" not in model or "target" not in model:
        raise ValueError(f"{path} has no model with target and params, so it is no configuration of taming or LDM")
    kind, params = str(model["target"]).rpartition(".")[2], dict(model["params"])
    if "first_stage_config" in params:  # of a transformer or diffusion model
        stage = params["first_stage_config"]
        kind, params = str(stage["target"]).rpartition(".")[2], dict(stage["params"])
    refuse = _make_refuser(path)
    refuse(kind not in MODELS, f"the model {kind}", f"{', '.join(MODELS)} are")
    unknown = sorted(
        set(params) - {"ddconfig", "n_embed", "embed_dim", "lossconfig", *OF_GUMBEL, *WITHOUT_EFFECT, *UNUSUAL}
    )
    refuse(unknown, f"the setting {', '.join(unknown)} of params", "the released settings are")
    for name, usual in UNUSUAL.items():
        refuse(params.get(name, usual) != usual, f"{name} {params.get(name)}", f"{usual} is")
    arguments = _read_networks(_require(params, "ddconfig", path), refuse, path)
    codebook = {"vocab_size": _require(params, "n_embed", path), "width": _require(params, "embed_dim", path)}
    rate = model.get("base_learning_rate")
    if "first_stage_config" not in model["params"] and rate is not None:
        arguments["optim"] = Optim(lr=float(rate), betas=(0.5, 0.9), weight_decay=0.0, schedule="constant")
    if kind == "GumbelVQ":
        schedule = dict((params.get("temperature_scheduler_config") or {}).get("params") or {})
        refuse(schedule.get("warm_up_steps", 0), "a warm-up of the temperature", "a cosine from the first step is")
        codebook |= {"quantizer": "gumbel", "kl_weight": params.get("kl_weight", 1e-8)}
        if schedule:
            codebook["tau"] = (schedule["lr_max"], schedule["lr_min"], schedule["max_decay_steps"])
    losses = _read_losses(params.get("lossconfig") or {}, refuse, arguments["channels"])
    return arguments | losses | {"codebook": codebook | losses.get("codebook", {})}


def _require(settings: Mapping[str, Any], name: str, path: str | Path) -> Any:
    if name not in settings:
        raise ValueError(f"{path} has no {name}, so it does not say what the network is")
    return settings[name]


def _make_refuser(path: str | Path) -> Any:
    def refuse(wrong: object, what: str, instead: str) -> None:
        if wrong:
            raise ValueError(f"{path}: {what} is not supported, {instead}")

    return refuse


def _read_networks(dd: Mapping[str, Any], refuse: Any, path: str | Path) -> dict[str, Any]:
    unknown = sorted(set(dd) - DDCONFIG)
    refuse(unknown, f"the setting {', '.join(unknown)} of ddconfig", "the released settings are")
    refuse(dd.get("double_z"), "double_z (a KL autoencoder)", "autoencoders with a codebook are")
    dd = dict(dd) | {name: _require(dd, name, path) for name in NEEDED}
    channels = (dd["in_channels"], dd["out_ch"])
    refuse(
        channels not in ((3, 3), (1, 1)), f"the number of channels {channels}", "3 (RGB) or 1 (depth) in and out are"
    )
    refuse(dd.get("dropout", 0.0), f"dropout {dd.get('dropout')}", "0 is")
    refuse(not dd.get("resamp_with_conv", True), "resampling without convolution", "with convolution is")
    for flag in ("give_pre_end", "tanh_out", "use_linear_attn"):
        refuse(dd.get(flag), flag, "the released settings are")
    kind = dd.get("attn_type", "vanilla")
    refuse(kind not in ("vanilla", "none"), f"attn_type {kind}", "vanilla and none are")
    sides = [dd["resolution"] // 2**i for i in range(len(dd["ch_mult"]))]  # taming overlooks resolutions of no level
    attention = tuple(side for side in dd["attn_resolutions"] if side in sides)
    return {
        "image_size": dd["resolution"],
        "channels": channels[0],
        "width": dd["ch"],
        "multipliers": tuple(dd["ch_mult"]),
        "blocks": dd["num_res_blocks"],
        "attention": attention if kind == "vanilla" else (),
        "mid_attention": kind == "vanilla",
        "z_channels": dd["z_channels"],
    }


def _read_losses(config: Mapping[str, Any], refuse: Any, channels: int) -> dict[str, Any]:
    target, params = str(config.get("target", "")), dict(config.get("params") or {})
    if not target.endswith("VQLPIPSWithDiscriminator"):
        known = target.rpartition(".")[2] in NO_LOSSES
        refuse(not known, f"the loss {target}", "VQLPIPSWithDiscriminator, and none (DummyLoss, Identity), are")
        return {"discriminator": None, "perceptual": "none"}
    refuse(params.get("disc_conditional"), "disc_conditional", "an unconditional discriminator is")
    refuse(params.get("use_actnorm"), "use_actnorm", "batch normalisation is")
    of_discriminator = {
        "disc_start": "start", "disc_num_layers": "layers", "disc_factor": "factor", "disc_weight": "weight",
        "disc_ndf": "width", "disc_loss": "loss",
    }  # fmt: skip
    others = ("perceptual_weight", "pixel_loss")
    unknown = sorted(set(params) - {*of_discriminator, *others, "codebook_weight", *LOSS_CHECKED, *LOSS_WITHOUT_EFFECT})
    refuse(unknown, f"the setting {', '.join(unknown)} of lossconfig", "the released settings are")
    seen = params.get("disc_in_channels", 3)
    refuse(seen != channels, f"a discriminator of {seen} channels beside images of {channels}", "as many are")
    refuse(params.get("perceptual_loss", "lpips") != "lpips", "another perceptual_loss than lpips", "lpips is")
    return {
        "discriminator": {"weight": 1.0}
        | {ours: params[theirs] for theirs, ours in of_discriminator.items() if theirs in params},
        "codebook": {"weight": params["codebook_weight"]} if "codebook_weight" in params else {},
        **{name: params[name] for name in others if name in params},
    }
