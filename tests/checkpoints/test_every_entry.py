"""Every entry of a weights file is used, compared with what the model computes, refused, or named; in every layout."""

import logging
import re
from dataclasses import dataclass, field

import pytest
import torch
from published_folders import google_maskgit

import zoo
from zoo import registry
from zoo.checkpoints.format import Converted, Format
from zoo.checkpoints.published import (
    diffusers_vq,
    flava,
    hf_beit,
    hf_blip2,
    lavis,
    llamagen,
    maskgit_tokenizer,
    maskgit_transformer,
)
from zoo.checkpoints.unused_entries import entries_of, summarise_names, track_entries, untrack_entries
from zoo.nn.relative_position import relative_position_index
from zoo.nn.sparse_attention import joint_mask
from zoo.sampling.token_order import token_order


@dataclass
class File:
    """A file of a layout: who reads it, what is in it, and beside which names a stray entry would be overlooked."""

    reader: str
    state: dict
    prefixes: tuple
    settings: dict = field(default_factory=dict)
    constants: dict = field(default_factory=dict)  # entries that the model computes by itself -> another value


def state_of(name, **settings):
    return {n: v.clone() for n, v in zoo.create_model(name, **settings).state_dict().items()}


def inverted(rename, candidates, own):
    """The names of a layout for our tensors, found among candidates."""
    found = {rename(name): name for name in candidates}
    return {found[name]: value for name, value in own.items() if name in found}


def without(state, *prefixes):
    return {name: value for name, value in state.items() if not name.startswith(prefixes)}


def renamed(state, *rules):
    found = {}
    for name, value in state.items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def encoder():
    return {n.removeprefix("encoder."): v for n, v in state_of("dvae_tiny").items() if n.startswith("encoder.")}


def flava_file():
    rules = (
        (r"\.(group_\d+)\.", r".\1.group."),
        (".res_path.", ".res_path.path."),
        (r"\.w$", ".weight"),
        (r"\.b$", ".bias"),
    )
    state = {f"image_codebook.{n}": v for n, v in renamed(encoder(), *rules).items()}
    assert set(map(flava.to_openai_name, renamed(encoder(), *rules))) == set(encoder())
    return File("dvae_tiny", state | {"flava.text_model.x": torch.zeros(2)}, ("image_codebook.", "flava."))


def taming_file():
    state = without(state_of("vqgan_tiny"), "discriminator.")
    loss = {f"loss.{n}": v for n, v in state_of("vqgan_tiny").items() if n.startswith("discriminator.")}
    others = {f"loss.perceptual_loss.net.slice1.{i}.weight": torch.zeros(2) for i in range(4)}
    prefixes = ("encoder.", "decoder.", "quantize.", "loss.", "loss.discriminator.", "loss.perceptual_loss.")
    return File("vqgan_tiny", state | loss | others, prefixes)


def staged_file():
    state = {f"first_stage_model.{n}": v for n, v in taming_file().state.items()}
    others = {f"transformer.blocks.{i}.x": torch.zeros(2) for i in range(5)}
    return File("vqgan_tiny", state | others, ("first_stage_model.", "first_stage_model.quantize.", "transformer."))


def maskgit_vqgan():
    return without(state_of("vqgan_maskgit_tiny"), "discriminator.", "lecam")


def flax_file():
    layers = [f"{layer}/{leaf}" for layer in maskgit_tokenizer.LAYERS for leaf in maskgit_tokenizer.LEAVES]
    parts = [f"ResBlock_{i}/{layer}" for i in range(12) for layer in layers]
    parts += [
        f"{kind}_{i}/{leaf}" for kind in ("GroupNorm", "Conv") for i in range(6) for leaf in maskgit_tokenizer.LEAVES
    ]
    names = ["quantizer/codebook", *(f"{side}/{part}" for side in ("encoder", "decoder") for part in parts)]
    names = [name for name in names if not re.search(r"(GroupNorm_\d+/kernel|Conv_\d+/scale)$", name)]
    own = maskgit_vqgan()
    kept = inverted(lambda n: maskgit_tokenizer.to_port_name(n, 3, 1), names, own)
    kept = {name: value.permute(2, 3, 1, 0) if value.ndim == 4 else value for name, value in kept.items()}
    assert len(kept) == len(own)
    return File("vqgan_maskgit_tiny", kept, ("encoder/", "decoder/", "quantizer/", "encoder/ResBlock_0/"))


def llamagen_file():
    own = without(state_of("vqgan_tiny", codebook={"quantizer": "l2"}), "discriminator.")
    rules = [(rf"\.mid\.{ours}\.", f".mid.{theirs}.") for theirs, ours in llamagen.MIDDLE.items()]
    rules += [(r"encoder\.down\.", "encoder.conv_blocks."), (r"(_blocks\.\d+)\.block\.", r"\1.res.")]
    rules += [(rf"decoder\.up\.{i}\.", f"decoder.conv_blocks.{2 - i}.") for i in range(3)]
    state = renamed(renamed(own, *rules), (r"(_blocks\.\d+)\.block\.", r"\1.res."))
    state["quantize.codebook_used"] = torch.zeros(9)
    return File("vqgan_tiny", state, ("encoder.", "decoder.", "quantize."), {"codebook": {"quantizer": "l2"}})


def google_file():
    prefixes = ("TransformerLayer_0/", f"TransformerLayer_0/{maskgit_transformer.SELF}/", "Embed_0/", "MlmLayer_0/")
    return File("maskgit_tiny", google_maskgit(state_of("maskgit_tiny"), 4), prefixes)


def taming_gpt_file():
    state = state_of("ar_transformer_tiny")
    mask, order = torch.ones(64, 64).tril().view(1, 1, 64, 64), token_order("z_curve", (8, 8))
    constants = {f"transformer.blocks.{i}.attn.mask": mask for i in range(2)}
    constants |= {"permuter.forward_shuffle_idx": order, "permuter.backward_shuffle_idx": order.argsort()}
    stage = {f"first_stage_model.encoder.x{i}": torch.zeros(2) for i in range(3)}
    return File(
        "ar_transformer_tiny", state | constants | stage, ("transformer.", "first_stage_model.", "permuter."),
        {"order": "z_curve"},
        {name: value.flip(-1) for name, value in constants.items()},
    )  # fmt: skip


def vit(name, **settings):
    return {n.removeprefix("vit."): v for n, v in state_of(name, **settings).items()}


INDEX = relative_position_index((4, 4))


def unilm_file():
    state = vit("beit_tiny") | {"rel_pos_bias.relative_position_index": INDEX}
    state = {f"backbone.{n}": v for n, v in state.items()} | {"decode_head.conv_seg.weight": torch.zeros(2)}
    wrong = {"backbone.rel_pos_bias.relative_position_index": INDEX.T}
    return File(
        "beit_tiny", state, ("backbone.", "decode_head.", "backbone.blocks.0.attn.", "backbone.fpn1."), {}, wrong
    )


def unilm_classifier_file():
    state = vit("beit_tiny", relative_positions="per_block")
    index = {f"blocks.{i}.attn.relative_position_index": INDEX for i in range(2)}
    prefixes = ("blocks.0.", "norm.", "lm_head.", "mask_token")
    return File("beit_classifier_tiny", state | index, prefixes, {}, dict.fromkeys(index, INDEX.T))


def timm_file():
    return File("beit_classifier_tiny", vit("beit_classifier_tiny"), ("blocks.0.attn.", "head.", "fc_norm."))


def hf_beit_file(names):
    state = hf_beit.to_hf_names(vit("beit_tiny"), names)
    index = {"v5": "beit.shared_position_bias.", "v4": "beit.encoder.relative_position_bias."}[names]
    index += "relative_position_index"
    prefixes = ("beit.", "beit.embeddings.", "layernorm.", "lm_head.")
    return File("beit_tiny", state | {index: INDEX}, prefixes, {}, {index: INDEX.T})


def lavis_file(reader, state, *others, prefixes=()):
    positions = {lavis.POSITIONS: torch.arange(20)[None]}
    more = {f"{other}.{i}": torch.zeros(2) for other in others for i in range(4)}
    prefixes = ("Qformer.", "Qformer.bert.embeddings.", *(f"{other}." for other in others), *prefixes)
    return File(reader, state | positions | more, prefixes, {}, {lavis.POSITIONS: torch.ones(1, 20).long()})


def lavis_stage2():
    rules = (r"^bridge\.", ""), (r"^language_projection\.", "opt_proj.")
    state = renamed(state_of("blip2_stage2_tiny"), *rules)
    text = {f"Qformer.bert.encoder.layer.{i}.intermediate.dense.weight": torch.zeros(2) for i in range(3)}
    return lavis_file(
        "blip2_stage2_tiny", state | text, "opt_model.model", "visual_encoder.blocks", prefixes=("opt_proj.", "temp")
    )


def seed_file():
    state = renamed(state_of("seed_stage2_tiny"), (r"^detokenizer\.", ""))
    return lavis_file("seed_stage2_tiny", state, "text_proj", prefixes=("blocks.0.", "quantize.", "image_down."))


def conditional_file():
    state = hf_blip2.to_hf_names(renamed(state_of("blip2_stage2_tiny"), (r"^bridge\.", "")))
    more = {f"{part}.model.{i}.weight": torch.zeros(2) for part in ("language_model", "vision_model") for i in range(4)}
    return File("blip2_stage2_tiny", state | more, ("qformer.", "language_model.", "vision_model.", "embeddings."))


def retrieval_file():
    state = hf_blip2.to_hf_names(without(state_of("blip2_stage1_tiny"), "temp", "Qformer.cls."))
    positions = {"embeddings.position_ids": torch.arange(20)[None]}
    more = {f"vision_model.encoder.layers.{i}.x": torch.zeros(2) for i in range(4)}
    prefixes = ("qformer.", "embeddings.", "vision_model.", "vision_projection.")
    return File(
        "blip2_stage1_tiny", state | positions | more, prefixes, {}, {"embeddings.position_ids": torch.ones(1, 20)}
    )


def llava_file():
    state = {f"model.{n}": v for n, v in state_of("llava_tiny").items()}
    more = {f"model.layers.{i}.mlp.up_proj.weight": torch.zeros(2) for i in range(4)}
    return File("llava_tiny", state | more, ("model.", "model.vision_tower.", "lm_head."))


def llava_whole_file():
    """With the language model, which full tuning reads, and the rotary frequencies of old files."""
    model = zoo.create_model("llava_tiny", tuning="full")
    rotary = dict(model.language.network.named_buffers())["model.rotary_emb.inv_freq"]
    state = renamed(model.state_dict(), (r"^language_model\.network\.", ""), (r"^mm_", "model.mm_"))
    constants = {f"model.layers.{i}.self_attn.rotary_emb.inv_freq": rotary.clone() for i in range(2)}
    prefixes = ("model.", "model.layers.0.self_attn.", "model.mm_projector.")
    return File("llava_tiny", state | constants, prefixes, {"tuning": "full"}, {n: v * 2 for n, v in constants.items()})


def llava_hf_file():
    state = renamed(state_of("llava_tiny"), (r"^mm_projector\.0", "model.multi_modal_projector.linear_1"),
                    (r"^mm_projector\.2", "model.multi_modal_projector.linear_2"))  # fmt: skip
    more = {f"model.vision_tower.layers.{i}.x": torch.zeros(2) for i in range(4)}
    return File("llava_tiny", state | more, ("model.multi_modal_projector.", "model.vision_tower.", "model."))


def lora_file():
    rules = (r"^language_model\.network\.(.*)\.default\.weight$", r"base_model.model.\1.weight"), ("^mm_", "model.mm_")
    return File("llava_lora_tiny", renamed(state_of("llava_lora_tiny"), *rules), ("base_model.model.", "model."))


def diffusers_file():
    own = without(state_of("vqgan_tiny"), "discriminator.")
    state = {diffusers_vq.to_diffusers_name(name, 3): value for name, value in own.items()}
    return File("vqgan_tiny", state, ("encoder.", "decoder.mid_block.", "quantize."))


def prefixed(reader, state, *prefixes, **settings):
    return File(reader, state, prefixes, settings)


def rudalle_file():
    state = without(state_of("dalle_tiny"), "text_merges")
    state = {name.removeprefix("transformer."): value for name, value in state.items()}
    kinds = {"row": "row", "col": "column", "conv": "conv"}
    masks = {f"transformer.{name}_mask": joint_mask(kind, 12, [(8, 8)], 3) for name, kind in kinds.items()}
    wrong = {name: ~mask for name, mask in masks.items()}
    return File("dalle_tiny", state | masks, ("transformer.", "transformer.layers.0.attention."), {}, wrong)


FILES = {
    "OpenAI dVAE (encoder.pkl, decoder.pkl)": lambda: prefixed("dvae_tiny", encoder(), "blocks.", "blocks.group_1."),
    "FLAVA image codebook (transformers)": flava_file,
    "OpenMMLab checkpoint with a DALL-E target generator": lambda: prefixed(
        "dvae_tiny", {f"target_generator.{n}": v for n, v in encoder().items()} | {"backbone.x": torch.zeros(2)},
        "target_generator.", "backbone.",
    ),
    "VQ-VAE-2 of rosinality/vq-vae-2-pytorch": lambda: prefixed(
        "vqvae2_tiny", state_of("vqvae2_tiny", codebook={"quantizer": "ema"}), "quantize_t.", "enc_t.",
        codebook={"quantizer": "vq"},
    ),
    "VQGAN of taming-transformers or Latent Diffusion (.ckpt)": taming_file,
    "VQGAN of taming-transformers or Latent Diffusion (.ckpt), inside a transformer": staged_file,
    "VQModel of diffusers": diffusers_file,
    "MaskGIT's tokenizer (Flax)": flax_file,
    "MaskGIT's tokenizer (port of open-muse and TiTok)": lambda: prefixed(
        "vqgan_maskgit_tiny", maskgit_vqgan(), "encoder.", "decoder.", "quantize."
    ),
    "LlamaGen's VQ tokenizer (.pt)": llamagen_file,
    "second stage of taming-transformers": taming_gpt_file,
    "ruDALL-E (Malevich, Emojich, Surrealist)": rudalle_file,
    "Google's MaskGIT transformer (Flax)": google_file,
    "Maskgit-pytorch v1 (valeoai)": lambda: prefixed(
        "maskgit_tiny", renamed(state_of("maskgit_tiny", layout="valeoai"), ("^network.", "")), "transformer.",
        "tok_emb.", layout="valeoai",
    ),
    "BEiT with the names of microsoft/unilm": unilm_file,
    "BEiT with the names of microsoft/unilm, to a classifier": unilm_classifier_file,
    "BEiT classifier of timm": timm_file,
    "BEiT of transformers": lambda: hf_beit_file("v5"),
    "BEiT of transformers, old names": lambda: hf_beit_file("v4"),
    "BLIP-2's Q-Former of salesforce/LAVIS, first stage": lambda: lavis_file(
        "blip2_stage1_tiny", state_of("blip2_stage1_tiny"), "opt_proj", "visual_encoder.blocks"
    ),
    "BLIP-2 of salesforce/LAVIS, second stage": lavis_stage2,
    "BLIP-2's first stage": lambda: lavis_file(
        "blip2_stage2_tiny", state_of("blip2_stage1_tiny"), "visual_encoder.blocks"
    ),
    "BLIP-2's first stage, to SEED's": lambda: lavis_file("seed_stage1_tiny", state_of("blip2_stage1_tiny")),
    "our BLIP-2, second stage": lambda: prefixed(
        "blip2_stage2_tiny", state_of("blip2_stage2_tiny"), "bridge.", "language_projection.", language_model=None
    ),
    "Blip2ForImageTextRetrieval of transformers": retrieval_file,
    "Blip2ForConditionalGeneration of transformers": conditional_file,
    "MiniGPT-4's projection": lambda: prefixed(
        "minigpt4_tiny", state_of("minigpt4_tiny") | {"visual_encoder.x": torch.zeros(2)}, "llama_proj.",
        "visual_encoder.",
    ),
    "LLaVA of haotian-liu/LLaVA": llava_file,
    "LLaVA of haotian-liu/LLaVA, whole": llava_whole_file,
    "LLaVA's LoRA files": lora_file,
    "LlavaForConditionalGeneration of transformers": llava_hf_file,
    "SEED's tokenizer of AILab-CVC/SEED": seed_file,
    "the first stage of SEED or BLIP-2": lambda: lavis_file("seed_stage2_tiny", state_of("seed_stage1_tiny")),
}  # fmt: skip


@pytest.fixture(scope="module")
def made():
    """Files and readers, made once."""
    kept = {}

    def make(name):
        if name not in kept:
            file = FILES[name]()
            kept[name] = file, zoo.create_model(file.reader, **file.settings)
        return kept[name]

    return make


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO)

    def load(model, state, path):
        """What loading says, or the sentence of its refusal."""
        caplog.clear()
        torch.save({"state_dict": {n: v.contiguous() for n, v in state.items()}}, path)
        try:
            model.load_weights(path)
        except ValueError as error:
            return f"refused: {error}"
        return " | ".join(record.getMessage() for record in caplog.records)

    return load


def test_every_layout_is_here():
    layouts = {layout.name for preset in registry.presets().values() for layout in preset.cls.formats}
    assert layouts == {name.partition(", inside")[0].partition(", to ")[0].partition(", old")[0].partition(", whole")[0]
                       for name in FILES}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_whole_file_is_read_as_its_layout(name, made, said, tmp_path):
    file, model = made(name)
    message = said(model, file.state, tmp_path / "m.pt")
    layout = name.partition(", inside")[0].partition(", to ")[0].partition(", old")[0].partition(", whole")[0]
    assert f"as {layout}" in message, message
    assert "refused" not in message, message


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_a_stray_entry_is_refused_or_named(name, made, said, tmp_path):
    file, model = made(name)
    for prefix in ("", *file.prefixes):
        for stray in (f"{prefix}quux", f"{prefix}quux.weight") if prefix else ("quux.weight",):
            message = said(model, file.state | {stray: torch.ones(3)}, tmp_path / "m.pt")
            assert "quux" in message, (stray, message)


@pytest.mark.parametrize("name", FILES)
def test_an_entry_that_the_model_computes_by_itself_must_have_that_value(name, made, said, tmp_path):
    file, model = made(name)
    for entry, wrong in file.constants.items():
        assert entry in file.state, entry
        message = said(model, file.state | {entry: wrong}, tmp_path / "m.pt")
        assert message.startswith("refused"), (entry, message)
        assert entry.split(".")[-1] in message, (entry, message)
        silent = said(model, file.state, tmp_path / "m.pt")
        assert entry not in silent, silent  # it was compared, so there is nothing to say


def test_tensors_beside_the_weights_of_a_file_are_named(made, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    file, model = made("MiniGPT-4's projection")
    training = {"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}, "rng_state": torch.ones(3), "epoch": 3,
                "loops": {"x": torch.ones(1)}, "global_step": torch.tensor(7)}  # fmt: skip
    others = {"logit_scale": torch.ones(()), "adapter": {"down.weight": torch.ones(2)}}
    others |= {"ema": {"decay": 0.9, "shadow": {"w": torch.ones(2)}}}
    torch.save({"model": file.state, **training, **others}, tmp_path / "m.pt")
    model.load_weights(tmp_path / "m.pt")
    assert f"not used from {tmp_path / 'm.pt'}: logit_scale, adapter, ema, beside model" in caplog.text


def test_what_a_reader_drops_is_named_though_it_says_nothing(made, said, tmp_path, monkeypatch):
    def convert(state, model):
        return Converted({name: value.float() for name, value in state.items() if name.startswith("llama_proj.")})

    careless = Format("careless", lambda state: "lost.scale" in state, convert)
    model = zoo.create_model("minigpt4_tiny")
    monkeypatch.setattr(type(model), "formats", (careless,))
    state = state_of("minigpt4_tiny") | {"lost.scale": torch.ones(1)}
    assert "not used from" in (message := said(model, state, tmp_path / "m.pt"))
    assert "lost.scale" in message


def test_a_tensor_remembers_what_it_was_made_of_through_everything_readers_do():
    state = track_entries({"a": torch.rand(4, 6), "b": torch.rand(4, 6), "c": torch.rand(6)})
    joined = torch.cat([state["a"].half().float(), state["b"]])
    for made in (joined, joined.t().contiguous(), joined[1:, None], joined.chunk(2)[0], torch.stack([joined, joined])):
        assert entries_of([made]) == {"a", "b"}
    assert entries_of([state["c"] + 1, 3, torch.ones(1)]) == {"c"}
    kept = untrack_entries({"x": state["a"], "y": torch.ones(1)})
    assert [type(value) for value in kept.values()] == [torch.Tensor] * 2
    assert kept["x"].data_ptr() == state["a"].data_ptr()


def test_names_for_a_message_are_few_and_a_single_one_is_spelled_out():
    names = [f"visual_encoder.blocks.{i}.attn.{j}" for i in range(9) for j in "qkv"]
    assert summarise_names(
        [*names, "visual_encoder.blocks.0.stray.weight", "visual_encoder.stray", "temp", "a/b/c"]
    ) == ("visual_encoder.blocks.* (27), visual_encoder.blocks.0.stray.weight, visual_encoder.stray, temp, a/b/c")
    assert summarise_names([f"x{i}" for i in range(20)]) == "* (20)"
