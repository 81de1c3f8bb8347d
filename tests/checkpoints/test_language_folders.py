"""Language models out of folders: inside a BLIP-2, filled as a whole, and as their configurations say."""

import json

import pytest
import torch
from published_folders import drawn, edited

import zoo
from zoo.checkpoints.published.hf_blip2 import save_blip2
from zoo.language.by_name import find_language_model
from zoo.language.tiny import character_tokenizer

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def no_bars():
    from transformers.utils import logging

    logging.disable_progress_bar()


@pytest.mark.parametrize("kind", ["tiny_opt", "tiny_t5", "tiny_llama"])
def test_the_language_model_inside_a_blip2(tmp_path, kind):
    from transformers import Blip2ForConditionalGeneration

    model = drawn(zoo.create_model("blip2_stage2_tiny", vision="tiny_eva", language_model=kind))
    drawn(model.language.network)
    folder = save_blip2(model, tmp_path / "ours")
    reference = Blip2ForConditionalGeneration.from_pretrained(folder).eval()
    reference.save_pretrained(tmp_path / "theirs")
    character_tokenizer(t5=kind == "tiny_t5").save_pretrained(tmp_path / "theirs")
    for source in (folder, tmp_path / "theirs"):
        found = find_language_model(str(source))
        assert found.width == 32
        assert found.encoder_decoder == (kind == "tiny_t5")
        expected = reference.language_model.state_dict()
        own = found.network.state_dict()
        assert own.keys() == expected.keys()
        torch.testing.assert_close(dict(own), dict(expected))
        whole = zoo.create_model("blip2_stage2_tiny", vision="tiny_eva", language_model=str(source), weights=source)
        assert whole.caption(IMAGES, num_beams=1, max_new_tokens=3)


@pytest.fixture
def llama_folder(tmp_path):
    found = find_language_model("tiny_llama")
    found.network.save_pretrained(tmp_path / "llama")
    found.text.tokenizer.save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"


def test_weights_that_fill_a_language_model_in_part_are_refused(llama_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    find_language_model(str(llama_folder))
    state = load_file(llama_folder / "model.safetensors")
    for lost in ("lm_head.weight", "model.layers.1.mlp.up_proj.weight"):
        folder = edited(llama_folder, tmp_path / lost)
        save_file({n: v for n, v in state.items() if n != lost}, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=f"does not fill the language model .* it lacks {lost}"):
            find_language_model(str(folder))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "says quantization_config"),
        ({"model_type": "bert"}, "bert, which writes no text|does not fill"),
        ({"model_type": "clip"}, "clip|writes no text"),
        ({"model_type": "nothing_known"}, "nothing_known"),
        ({"num_hidden_layers": 3}, "does not fill the language model"),
        ({"hidden_size": 33}, "does not fill the language model|cannot"),
        ({"vocab_size": 7}, "does not fill the language model|cannot"),
    ],
)
def test_configurations_of_language_models_that_are_refused(llama_folder, tmp_path, fields, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        find_language_model(str(edited(llama_folder, tmp_path / "f", **fields)))
    assert "\n" not in str(caught.value)


def test_outputs_are_taken_by_name_whatever_a_folder_says_of_tuples(llama_folder, tmp_path):
    ids = torch.arange(3, 12)[None]
    with torch.no_grad():
        expected = find_language_model(str(llama_folder)).network(input_ids=ids).logits
        found = find_language_model(str(edited(llama_folder, tmp_path / "f", return_dict=False)))
        torch.testing.assert_close(found.network(input_ids=ids).logits, expected)


@pytest.mark.parametrize("fields", [{"hidden_size": 33}, {"num_attention_heads": 5}, {"head_dim": 9}])
def test_configurations_of_the_published_llava_that_contradict_themselves_end_in_a_sentence(
    llama_folder, tmp_path, fields
):
    llava = {"model_type": "llava_llama", "mm_hidden_size": 32, "mm_projector_type": "linear"}
    folder = edited(llama_folder, tmp_path / "f", **llava | fields)
    with pytest.raises(ValueError, match=r"transformers cannot read config\.json of ") as caught:
        find_language_model(str(folder))
    assert "\n" not in str(caught.value)


def test_two_tables_where_the_configuration_says_one_are_refused(llama_folder, tmp_path):
    llava = {"model_type": "llava_llama", "mm_hidden_size": 32, "mm_projector_type": "linear"}
    assert find_language_model(str(edited(llama_folder, tmp_path / "two", **llava))).width == 32
    folder = edited(llama_folder, tmp_path / "one", **llava, tie_word_embeddings=True)
    with pytest.raises(
        ValueError, match=r"lm_head\.weight and model\.embed_tokens\.weight are one table, and holds two"
    ):
        find_language_model(str(folder))


def test_a_folder_with_lora_is_no_language_model(llama_folder, tmp_path):
    folder = edited(llama_folder, tmp_path / "f", file="adapter_config.json", r=4)
    with pytest.raises(ValueError, match="holds LoRA matrices beside a language model"):
        find_language_model(str(folder))


@pytest.mark.parametrize(("said", "used"), [("gelu_new", "gelu"), ("gelu", "gelu"), ("relu", "relu")])
def test_flan_t5_computes_as_in_blip2_and_others_as_they_say(tmp_path, said, used):
    found = find_language_model("tiny_t5")
    folder = tmp_path / "t5"
    found.network.save_pretrained(folder)
    found.text.tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    gated = "gated-gelu" if said != "relu" else "gated-relu"
    config |= {"dense_act_fn": said, "feed_forward_proj": gated}
    (folder / "config.json").write_text(json.dumps(config))
    assert find_language_model(str(folder)).network.config.dense_act_fn == used
