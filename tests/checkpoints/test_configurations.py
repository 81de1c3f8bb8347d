"""Every field of a published configuration is used as transformers uses it, or refused by name."""

import json

import pytest
import torch
from published_folders import drawn, edited

import zoo
from zoo.checkpoints.config_checks import ConfigFields, Required, accept_any_of, find_unknown_fields
from zoo.checkpoints.published.clip import check_pixels
from zoo.checkpoints.published.hf_blip2 import save_blip2
from zoo.language.tiny import character_tokenizer
from zoo.vision.encoders import vision_tower

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
WORDS = "ab cd"
VISION = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "patch_size": 8,
    "image_size": 32,
}  # fmt: skip
TEXT = {
    "model_type": "llama", "vocab_size": 101, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
    "eos_token_id": 2, "pad_token_id": 0, "tie_word_embeddings": False,
}  # fmt: skip


def save_llava(folder, vision=None, text=None, **fields):
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    torch.manual_seed(4)
    config = LlavaConfig(
        vision_config={"model_type": "clip_vision_model"} | VISION | (vision or {}), text_config=TEXT | (text or {}),
        image_token_index=100, **{"tie_word_embeddings": False} | fields,
    )  # fmt: skip
    drawn(LlavaForConditionalGeneration(config)).save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def plain_llava(tmp_path_factory):
    return save_llava(tmp_path_factory.mktemp("llava"))


@pytest.fixture(autouse=True)
def no_bars():
    from transformers.utils import logging

    logging.disable_progress_bar()


def ours_of(folder, **settings):
    """Image tokens, and the logits of words behind them."""
    folder = str(folder)
    model = zoo.create_model(
        "llava_tiny", **{"vision": f"clip:{folder}", "language_model": folder, "weights": folder} | settings
    ).eval()
    with torch.no_grad():
        batch = model._read(model.language_inputs(IMAGES), [model._about(WORDS)] * 2)
        return model.language_inputs(IMAGES), model.language(batch.embeds, batch.mask, batch.positions)[..., :100]


def theirs_of(folder):
    from transformers import LlavaForConditionalGeneration

    reference = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    mean, std = (
        torch.tensor(v).view(1, 3, 1, 1)
        for v in (zoo.checkpoints.published.clip.CLIP_MEAN, zoo.checkpoints.published.clip.CLIP_STD)
    )
    pixels = (IMAGES - mean) / std
    text = character_tokenizer()(WORDS + "\n", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        features = reference.get_image_features(pixel_values=pixels).pooler_output
        count = features[0].shape[0]
        ids = torch.tensor([[1, *[reference.config.image_token_id] * count, *text]] * 2)
        logits = reference(pixel_values=pixels, input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return torch.stack(list(features)), logits[..., :100]


def assert_equal_outputs(folder, **settings):
    for ours, theirs in zip(ours_of(folder, **settings), theirs_of(folder), strict=True):
        assert theirs.std() > 0.05
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-5)


# ---------------------------------------------------------------- LLaVA of transformers


@pytest.mark.parametrize(
    ("part", "fields"),
    [
        (None, {}),
        (None, {"vision_feature_layer": -1}),
        (None, {"vision_feature_layer": -3}),
        (None, {"vision_feature_layer": 1}),
        (None, {"vision_feature_layer": 3}),
        (None, {"vision_feature_layer": -4}),
        (None, {"vision_feature_select_strategy": "full"}),
        (None, {"image_seq_length": 7}),
        (None, {"image_token_index": 97}),
        ("vision_config", {"hidden_act": "gelu"}),
        ("vision_config", {"layer_norm_eps": 1e-2}),
        ("vision_config", {"num_attention_heads": 2}),
        ("text_config", {"rms_norm_eps": 1e-2}),
        ("text_config", {"hidden_act": "gelu"}),
        ("text_config", {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
    ],
)
def test_fields_of_llava_are_used_as_transformers_uses_them(plain_llava, tmp_path, part, fields):
    folder = edited(plain_llava, tmp_path / "f", part, **fields)
    assert_equal_outputs(folder)
    if fields and not fields.keys() & {"image_seq_length", "image_token_index"}:
        before = theirs_of(plain_llava)[1]
        after = theirs_of(folder)[1]
        assert before.shape != after.shape or not torch.allclose(before, after, atol=1e-3), "the field does something"


@pytest.mark.parametrize("tied", [True, False])
def test_a_llava_with_one_table_for_words_in_and_out(tmp_path, tied):
    folder = save_llava(tmp_path / "f", text={"tie_word_embeddings": tied}, tie_word_embeddings=tied)
    assert_equal_outputs(folder)
    tuned = zoo.create_model("llava_tiny", language_model=str(folder), vision=f"clip:{folder}", tuning="full")
    before = {n: v.clone() for n, v in tuned.language.network.state_dict().items()}
    tuned.load_weights(str(folder))
    torch.testing.assert_close(dict(tuned.language.network.state_dict()), before)


@pytest.mark.parametrize(
    ("part", "fields", "sentence"),
    [
        (None, {"projector_hidden_act": "relu"}, "says projector_hidden_act 'relu', and this model has 'gelu'"),
        (None, {"multimodal_projector_bias": False}, "says multimodal_projector_bias False"),
        (None, {"vision_feature_layer": [-1, -2]}, r"vision_feature_layer \[-1, -2\].*several layers"),
        (None, {"vision_feature_layer": True}, "vision_feature_layer True.*several layers"),
        (None, {"vision_feature_layer": -9}, "no hidden state -9 in an image encoder of 3 blocks"),
        (None, {"vision_feature_select_strategy": "mean"}, "select cannot be 'mean'"),
        (None, {"mask_ratio": 0.5}, "says mask_ratio 0.5, which is not implemented"),
        ("vision_config", {"use_registers": 4}, "says use_registers 4, which is not implemented"),
        ("vision_config", {"model_type": "siglip_vision_model"}, "siglip_vision_model"),
    ],
)
def test_fields_of_llava_that_are_not_implemented_are_refused(plain_llava, tmp_path, part, fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        ours_of(edited(plain_llava, tmp_path / "f", part, **fields))
    assert "\n" not in str(caught.value)


def test_settings_that_contradict_the_configuration_are_refused(plain_llava, tmp_path):
    full = edited(plain_llava, tmp_path / "full", vision_feature_select_strategy="full")
    with pytest.raises(ValueError, match=r"says vision_feature_select_strategy 'full'.*build.*select='cls_patch'"):
        ours_of(full, select="patch")
    last = edited(plain_llava, tmp_path / "last", vision_feature_layer=-1)
    with pytest.raises(ValueError, match=r"vision_feature_layer -1, which 3 blocks of 3 give.*vision_layer=3"):
        ours_of(last, vision_layer=-2)
    assert_equal_outputs(last, vision_layer=3)
    with pytest.raises(ValueError, match="says hidden_act 'gelu', and this model has 'quick_gelu'"):
        ours_of(edited(plain_llava, tmp_path / "act", "vision_config", hidden_act="gelu"), vision="tiny_clip")


def test_what_a_configuration_said_is_in_the_checkpoint(plain_llava, tmp_path):
    from zoo.checkpoints.export import save_weights
    from zoo.registry import from_checkpoint

    folder = edited(plain_llava, tmp_path / "f", vision_feature_select_strategy="full", vision_feature_layer=-1)
    model = zoo.create_model("llava_tiny", language_model=str(folder), weights=folder)
    assert model.init_args()["select"] == "cls_patch"
    assert model.init_args()["vision_layer"] == 3
    path = save_weights(model, tmp_path / "a.safetensors")
    again = from_checkpoint(path)
    torch.testing.assert_close(again.eval().language_inputs(IMAGES), model.eval().language_inputs(IMAGES))


def mutations(fields, skip):
    for name, value in fields.items():
        if name in skip:
            continue
        if isinstance(value, bool):
            yield name, not value
        elif isinstance(value, int):
            yield name, value + 1
        elif isinstance(value, float):
            yield name, value * 1.5 + 0.01
        elif isinstance(value, str):
            yield name, {"gelu": "relu", "quick_gelu": "gelu", "silu": "gelu", "default": "full"}.get(value, "other")
        elif value is None:
            yield name, 3
        elif isinstance(value, list):
            yield name, [*value, 1]
        elif isinstance(value, dict) and value:
            yield name, {k: (v * 2 if isinstance(v, float) else v) for k, v in value.items()}


def ours_or_sentence(folder):
    try:
        return ours_of(folder), ""
    except ValueError as error:
        return None, str(error)


@pytest.mark.slow
@pytest.mark.parametrize("part", [None, "vision_config", "text_config"])
def test_every_single_field_of_llava_is_used_or_refused(plain_llava, tmp_path, part):
    config = json.loads((plain_llava / "config.json").read_text())
    fields = config if part is None else config[part]
    same = refused = 0
    skip = ("text_config", "vision_config", "image_token_index", "image_size")  # positions are resized to images
    for i, (name, value) in enumerate(mutations(fields, skip)):
        folder = edited(plain_llava, tmp_path / str(i), part, **{name: value})
        ours, sentence = ours_or_sentence(folder)
        if ours is None:
            assert sentence, name
            assert "\n" not in sentence, name
            refused += 1
            continue
        for one, other in zip(ours, theirs_of(folder), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=5e-5, msg=f"{part} {name} {value}")
        same += 1
    assert same > 3
    assert refused > 1


# ---------------------------------------------------------------- LLaVA of haotian-liu


ORIGINAL = {
    "model_type": "llava", "mm_vision_tower": "openai/clip-vit-large-patch14", "mm_hidden_size": 32,
    "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2, "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False, "mm_use_im_patch_token": False, "mm_resampler_type": None,
    "mm_patch_merge_type": "flat", "image_aspect_ratio": "square", "use_mm_proj": True,
    "tune_mm_mlp_adapter": False, "freeze_mm_mlp_adapter": False,
    "unfreeze_mm_vision_tower": False, "tokenizer_padding_side": "right", "tokenizer_model_max_length": 2048,
    "mm_projector_lr": None, "hidden_size": 32, "rope_theta": 10000.0, "pretraining_tp": 1, "max_length": 4096,
}  # fmt: skip


@pytest.fixture(scope="module")
def original_llava(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    torch.manual_seed(1)
    model = zoo.create_model("llava_tiny")
    state = {f"model.{n}": torch.randn_like(v) for n, v in model.state_dict().items()}
    torch.save(state, folder / "mm_projector.bin")
    (folder / "config.json").write_text(json.dumps(ORIGINAL))
    return folder


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"mm_projector_type": "linear"}, "says mm_projector_type 'linear', and this model has 'mlp2x_gelu'"),
        ({"mm_projector_type": "mlp3x_gelu"}, "mm_projector_type"),
        ({"mm_projector_type": "identity"}, "mm_projector_type"),
        ({"mm_hidden_size": 48}, "mm_hidden_size 48"),
        ({"mm_vision_select_layer": -1}, "mm_vision_select_layer -1, which 3 blocks of 3 give.*vision_layer=3"),
        ({"mm_vision_select_feature": "cls_patch"}, "build the model with select='cls_patch'"),
        ({"mm_use_im_start_end": True}, "mm_use_im_start_end True.*signs around images"),
        ({"mm_resampler_type": "qformer"}, "mm_resampler_type 'qformer'"),
        ({"mm_patch_merge_type": "spatial_unpad"}, "images in tiles"),
        ({"image_aspect_ratio": "anyres"}, "images in tiles"),
        ({"use_mm_proj": False}, "use_mm_proj False"),
        ({"model_type": "llava_mpt"}, "other language models"),
        ({"mm_hybrid_tower": "dino"}, "says mm_hybrid_tower 'dino', which is not implemented"),
    ],
)
def test_fields_of_the_published_llava_are_compared_or_refused(original_llava, tmp_path, fields, sentence):
    folder = edited(original_llava, tmp_path / "f", **fields)
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model("llava_tiny", weights=folder / "mm_projector.bin")
    assert "\n" not in str(caught.value)


def test_fields_of_the_published_llava_that_change_nothing(original_llava, tmp_path, caplog):
    zoo.create_model("llava_tiny", weights=original_llava / "mm_projector.bin")
    for i, fields in enumerate(
        ({"mm_use_im_patch_token": True}, {"tokenizer_padding_side": "left"}, {"mm_projector_lr": 2e-5},
         {"tune_mm_mlp_adapter": True}, {"unfreeze_mm_vision_tower": True}, {"max_length": 20})
    ):  # fmt: skip
        zoo.create_model("llava_tiny", weights=edited(original_llava, tmp_path / str(i), **fields) / "mm_projector.bin")
    with caplog.at_level("INFO"):
        folder = edited(original_llava, tmp_path / "pad", image_aspect_ratio="pad")
        zoo.create_model("llava_tiny", weights=folder / "mm_projector.bin")
    assert "pad images to squares" in caplog.text
    last = edited(original_llava, tmp_path / "last", mm_vision_select_layer=-1, mm_vision_select_feature="cls_patch")
    zoo.create_model("llava_tiny", vision_layer=-1, select="cls_patch", weights=last / "mm_projector.bin")


# ---------------------------------------------------------------- LoRA


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"peft_type": "LOHA"}, "peft_type 'LOHA'"),
        ({"r": 8}, "says r 8, and this model has 4: set lora.rank"),
        ({"use_rslora": True}, "use_rslora True"),
        ({"use_dora": True}, "use_dora True"),
        ({"lora_bias": True}, "lora_bias True"),
        ({"bias": "all"}, "bias 'all'"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights 'pissa'.*was changed with the matrices"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"layers_to_transform": [0]}, "layers_to_transform"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"target_modules": ["q_proj", "v_proj"]}, r"target_modules \['q_proj', 'v_proj'\].*matrices beside every"),
        ({"target_modules": ".*q_proj"}, "target_modules"),
    ],
)
def test_fields_of_an_adapter_are_compared_or_refused(tmp_path, fields, sentence):
    folder = lora_folder(tmp_path / "lora")
    zoo.create_model("llava_lora_tiny", weights=folder)
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model(
            "llava_lora_tiny", weights=edited(folder, tmp_path / "f", file="adapter_config.json", **fields)
        )
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"target_modules": ["q_proj"]}, "matrices beside every linear"), ({"r": 9}, "set lora.rank"),
     ({"layers_to_transform": [0]}, "layers_to_transform"), ({"init_lora_weights": "pissa"}, "'pissa'")],
)  # fmt: skip
def test_fields_of_an_adapter_beside_lora_of_any_model_are_compared(tmp_path, fields, sentence):
    from peft import LoraConfig

    state = zoo.create_model("seed_llm_tiny").state_dict()
    torch.save(state, tmp_path / "adapter_model.bin")
    LoraConfig(r=4, lora_alpha=8, target_modules="all-linear").save_pretrained(tmp_path)
    zoo.create_model("seed_llm_tiny", weights=tmp_path)
    folder = edited(tmp_path, tmp_path / "f", file="adapter_config.json", **fields)
    with pytest.raises(ValueError, match=sentence):
        zoo.create_model("seed_llm_tiny", weights=folder)


def test_an_adapter_is_compared_where_its_file_is_named_too(tmp_path):
    from peft import LoraConfig

    torch.save(zoo.create_model("seed_llm_tiny").state_dict(), tmp_path / "adapter_model.bin")
    LoraConfig(r=4, lora_alpha=256, target_modules="all-linear").save_pretrained(tmp_path)
    for path in (tmp_path, tmp_path / "adapter_model.bin"):
        with pytest.warns(UserWarning, match="trained with lora.alpha 256, and this model has 8"):
            zoo.create_model("seed_llm_tiny", weights=path)


def lora_folder(folder):
    from peft import LoraConfig
    from safetensors.torch import save_file

    folder.mkdir()
    state = zoo.create_model("llava_lora_tiny").state_dict()
    lora = {
        n.replace("language_model.network.", "base_model.model.").replace(".default.", "."): torch.randn_like(v)
        for n, v in state.items() if "lora_" in n
    }  # fmt: skip
    save_file(lora, folder / "adapter_model.safetensors")
    torch.save(
        {f"base_model.model.model.{n}": v for n, v in state.items() if "lora_" not in n},
        folder / "non_lora_trainables.bin",
    )
    names = {n.rpartition(".lora_")[0].rpartition(".")[2] for n in lora}
    written = LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM")
    written.save_pretrained(folder)
    return folder


# ---------------------------------------------------------------- BLIP-2


@pytest.fixture(scope="module")
def blip2(tmp_path_factory):
    torch.manual_seed(1)
    found = {}
    for stage in (1, 2):
        model = drawn(zoo.create_model(f"blip2_stage{stage}_tiny", vision="tiny_eva"))
        found[stage] = save_blip2(model, tmp_path_factory.mktemp(f"blip2_{stage}"))
    return found


@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize(
    ("part", "fields", "sentence"),
    [
        (None, {"num_query_tokens": 5}, "num_query_tokens 5, and this model has 4"),
        (None, {"model_type": "instructblip"}, "model_type 'instructblip'"),
        (None, {"use_gate": True}, "use_gate True, which is not implemented"),
        ("qformer_config", {"num_attention_heads": 4}, "num_attention_heads 4, and this model has 2"),
        ("qformer_config", {"hidden_act": "relu"}, "hidden_act 'relu'"),
        ("qformer_config", {"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ("qformer_config", {"cross_attention_frequency": 1}, "cross_attention_frequency 1"),
        ("qformer_config", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("qformer_config", {"new_gate": 2}, "new_gate 2"),
        ("vision_config", {"num_attention_heads": 2}, "num_attention_heads 2, and this model has 4"),
        ("vision_config", {"hidden_act": "quick_gelu"}, "hidden_act 'quick_gelu'"),
        ("vision_config", {"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ("vision_config", {"qkv_bias": False}, "qkv_bias False"),
        ("vision_config", {"num_hidden_layers": 3}, "num_hidden_layers 3"),
    ],
)
def test_fields_of_blip2_are_compared_or_refused(blip2, tmp_path, stage, part, fields, sentence):
    name = f"blip2_stage{stage}_tiny"
    with pytest.raises(ValueError, match=sentence) as caught:
        zoo.create_model(name, vision="tiny_eva", weights=edited(blip2[stage], tmp_path / "f", part, **fields))
    assert "\n" not in str(caught.value)


def test_blip2_as_written_is_read(blip2, tmp_path):
    for stage in (1, 2):
        zoo.create_model(f"blip2_stage{stage}_tiny", vision="tiny_eva", weights=blip2[stage])
    dropped = edited(blip2[2], tmp_path / "d", "qformer_config", hidden_dropout_prob=0.3)
    zoo.create_model("blip2_stage2_tiny", vision="tiny_eva", weights=dropped)
    folder = edited(blip2[1], tmp_path / "p", image_text_hidden_size=9)
    with pytest.raises(ValueError, match="image_text_hidden_size 9"):
        zoo.create_model("blip2_stage1_tiny", vision="tiny_eva", weights=folder)
    folder = edited(blip2[2], tmp_path / "q", use_decoder_only_language_model=False)
    with pytest.raises(ValueError, match="use_decoder_only_language_model False, and this model has True"):
        zoo.create_model("blip2_stage2_tiny", vision="tiny_eva", weights=folder)


# ---------------------------------------------------------------- image encoders, and the table of fields itself


def test_pixels_are_normalised_as_the_folder_says(plain_llava, tmp_path):
    vision_tower(f"clip:{plain_llava}", 32)
    for i, (fields, sentence) in enumerate(
        (
            ({"image_mean": [0.5, 0.5, 0.5]}, "image_mean"),
            ({"image_std": [0.5, 0.5, 0.5]}, "image_std"),
            ({"do_normalize": False}, "do_normalize False"),
            ({"rescale_factor": 1.0}, "rescale_factor"),
        )
    ):
        folder = edited(plain_llava, tmp_path / str(i), file="preprocessor_config.json", **fields)
        with pytest.raises(ValueError, match=sentence):
            vision_tower(f"clip:{folder}", 32)
    good = edited(plain_llava, tmp_path / "good", file="preprocessor_config.json", do_normalize=True, crop_size=336)
    check_pixels(str(good))


def test_the_size_of_any_clip_is_known_without_its_weights(plain_llava):
    with torch.device("meta"):
        tower = vision_tower(f"clip:{plain_llava}", 64)
    assert tower.width == 32
    assert tower.num_tokens == 65
    with pytest.raises(ValueError, match="random says nothing of a CLIP"):
        vision_tower("clip:random", 64)


def test_unknown_fields_are_refused_where_they_are_set():
    fields = ConfigFields(
        ("a",), {"b": Required(1, 1), "c": Required("x", "x", "why", accept_any_of("x", "y"))}, ("free_*",)
    )
    fields.check({"a": 5, "b": 1, "c": "y", "free_one": 3, "new": None, "other": [], "architectures": ["X"]}, "it")
    for config, sentence in (
        ({"b": 2}, "it says b 2, and this model has 1: that is not implemented"),
        ({"c": "z"}, "it says c 'z', and this model has 'x': why"),
        ({"new": 0.5}, "it says new 0.5, which is not implemented and may change outputs"),
        ({"b": None}, "it says b None"),
    ):
        with pytest.raises(ValueError, match=sentence):
            fields.check(config, "it")
    assert find_unknown_fields({"x": 1, "y": False, "z": {}}, ()) == ["x"]
