"""Constructor arguments: settings groups, dictionaries of their fields, and names of older versions."""

import dataclasses
import inspect
import json

import pytest
import torch
from lightning.pytorch.core.saving import save_hparams_to_yaml

import zoo
from zoo.checkpoints.export import save_weights
from zoo.init_args import (
    as_init_args,
    check_settings,
    migrate,
    moved_names,
    settings_groups,
    to_plain_data,
    typed_arguments,
    value_at,
)
from zoo.language.lora import LoRA
from zoo.models.llava import LLaVA
from zoo.models.seed_llm import SEEDLLM
from zoo.presets import presets, registered_classes

CLASSES = sorted(registered_classes(), key=lambda cls: cls.__name__)
WITH_GROUPS = [cls for cls in CLASSES if len(settings_groups(cls)) > 1]


def test_groups_are_found_in_the_annotations():
    assert settings_groups(SEEDLLM) == {"optim": zoo.Optim, "lora": LoRA}


# ---------------------------------------------------------------- dictionaries of fields


def test_a_dictionary_changes_its_fields_and_keeps_the_others_of_the_preset():
    args = presets()["llava_lora_tiny"].init_args
    assert as_init_args(LLaVA, {"lora": {"rank": 2}}, args)["lora"] == LoRA(2, 8, 0.0)
    found = as_init_args(LLaVA, {"optim": {"betas": [0.1, 0.2]}}, args)["optim"]
    assert found == zoo.Optim(lr=1e-2, betas=(0.1, 0.2))


def test_without_a_preset_the_other_fields_are_those_of_the_constructor():
    assert as_init_args(LLaVA, {"lora": {"rank": 2}})["lora"] == LoRA(2, 256)
    assert as_init_args(SEEDLLM, {"lora": {"rank": 2}}, {"lora": None})["lora"] == LoRA(2)


def test_a_group_itself_replaces_the_whole():
    args = presets()["llava_lora_tiny"].init_args
    assert as_init_args(LLaVA, {"lora": LoRA(2)}, args)["lora"] == LoRA(2, 32, 0.05)


def test_none_is_no_group_where_the_constructor_takes_it():
    assert as_init_args(SEEDLLM, {"lora": None})["lora"] is None
    with pytest.raises(TypeError, match="lora is a LoRA or a dictionary of its fields, got NoneType"):
        as_init_args(LLaVA, {"lora": None})


@pytest.mark.parametrize(
    ("lora", "error", "sentence"),
    [
        ({"rnak": 2}, TypeError, "lora takes no 'rnak': did you mean rank"),
        (3, TypeError, "lora is a LoRA or a dictionary of its fields, got int"),
        ({"rank": 0}, ValueError, "lora.rank must be a whole number of at least 1, got 0"),
        ({"rank": True}, ValueError, "lora.rank must be a whole number of at least 1, got True"),
        ({"dropout": 1}, ValueError, "lora.dropout must be a number of at least 0 and below 1, got 1"),
    ],
)
def test_mistakes_are_named_in_one_sentence(lora, error, sentence):
    with pytest.raises(error, match=sentence):
        zoo.create_model("llava_lora_tiny", lora=lora)


@pytest.mark.parametrize("cls", WITH_GROUPS)
def test_groups_are_frozen_and_made_again_from_plain_data(cls):
    for name, kind in settings_groups(cls).items():
        default = inspect.signature(cls).parameters[name].default
        if default is not None:
            assert dataclasses.is_dataclass(kind)
            assert hash(default) is not None
            assert typed_arguments(cls, json.loads(json.dumps(to_plain_data({name: default})))) == {name: default}


def test_a_dotted_name_leads_into_a_group():
    args = {"lora": LoRA(3), "plain": {"rank": 4}, "none": None, "width": 5}
    assert [value_at(args, path) for path in ("lora.rank", "plain.rank", "none.rank", "width", "nothing.at.all")] == [
        3, 4, None, 5, None,
    ]  # fmt: skip


# ---------------------------------------------------------------- names of older versions


def test_flat_arguments_become_fields():
    assert migrate(LLaVA, {"lora_rank": 2, "image_size": 8}) == {"image_size": 8, "lora": {"rank": 2}}
    assert LLaVA.migrate({"lora_rank": 2, "lora": {"alpha": 1}}) == {"lora": {"rank": 2, "alpha": 1}}


def test_what_is_of_today_stays_as_it_is():
    args = {"image_size": 8, "lora": LoRA(2)}
    assert migrate(LLaVA, args) == args
    assert migrate(LLaVA, to_plain_data(args)) == to_plain_data(args)


def test_rank_zero_stood_for_no_lora():
    assert migrate(SEEDLLM, {"lora_rank": 0, "lora_alpha": 9}) == {"lora": None}


@pytest.mark.parametrize("lora", [{"rank": 3}, LoRA(3), None])
def test_a_setting_under_both_names_is_refused(lora):
    with pytest.raises(TypeError, match=r"lora_rank is lora\.rank now, and lora is given too: leave lora_rank out"):
        migrate(LLaVA, {"lora_rank": 2, "lora": lora})


@pytest.mark.parametrize("cls", CLASSES)
def test_old_names_lead_to_fields_that_are_there_and_are_no_arguments_any_more(cls):
    parameters, groups = inspect.signature(cls).parameters, settings_groups(cls)
    for old, new in moved_names(cls).items():
        group, _, name = new.partition(".")
        assert old not in parameters
        assert group in parameters
        assert name in {f.name for f in dataclasses.fields(groups[group])}


@pytest.mark.parametrize("cls", CLASSES)
def test_the_default_of_an_optional_group_is_that_of_its_class(cls):
    """A recipe that names some fields takes the others from the class, and Python from the constructor's default."""
    for name, kind in settings_groups(cls).items():
        if "None" in str(inspect.signature(cls).parameters[name].annotation):
            assert inspect.signature(cls).parameters[name].default in (None, kind())


def test_create_model_takes_older_names_and_warns_of_them():
    with pytest.warns(FutureWarning, match=r"LLaVA has settings under other names now: lora_rank is lora\.rank"):
        model = zoo.create_model("llava_lora_tiny", lora_rank=2)
    assert model.hparams["lora"] == LoRA(2, 8, 0.0)


@pytest.mark.filterwarnings("error::FutureWarning")
def test_a_setting_under_both_names_is_one_sentence_without_a_warning():
    with pytest.raises(TypeError, match=r"lora_rank is lora\.rank now"):
        zoo.create_model("llava_lora_tiny", lora_rank=2, lora={"rank": 3})


@pytest.mark.parametrize(
    ("preset", "typed", "today"),
    [("vqgan_tiny", "disc_strt", "discriminator.start"), ("seed_stage1_tiny", "num_querys", "qformer.queries")],
)
def test_what_is_near_an_older_name_is_told_the_name_of_today(preset, typed, today):
    with pytest.raises(TypeError, match=f"takes no '{typed}': did you mean {today}\\?"):
        zoo.create_model(preset, **{typed: 3})


def test_a_constructor_says_that_it_takes_groups_and_no_dictionaries():
    with pytest.raises(TypeError, match=r"lora of LLaVA is a LoRA, got a dictionary: write LoRA\(\.\.\.\), or"):
        check_settings(LLaVA, {"lora": {"rank": 2}})


def test_registered_presets_may_have_older_names_and_dictionaries(monkeypatch):
    monkeypatch.setattr("zoo.presets._PRESETS", dict(presets()))
    with pytest.warns(FutureWarning, match=r"lora_rank is lora\.rank"):
        zoo.register("mine_old", LLaVA, paper="arXiv:2310.03744", lora_rank=2)
    zoo.register("mine_new", LLaVA, paper="arXiv:2310.03744", lora={"rank": 2})
    assert presets()["mine_old"].init_args == presets()["mine_new"].init_args == {"lora": LoRA(2, 256)}


# ---------------------------------------------------------------- files


def of_a_run(model, folder):
    """The checkpoint of a run from Python."""
    import lightning.pytorch as pl

    trainer = pl.Trainer(
        accelerator="cpu", max_steps=0, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.strategy.connect(model)
    model.trainer = trainer
    trainer.save_checkpoint(folder / "run.ckpt")
    return folder / "run.ckpt"


#: one preset of each class with a settings group
ONE_OF_EACH = [
    "llava_lora_tiny", "seed_llm_tiny", "vqgan_tiny", "vqvae_tiny", "seed_stage1_tiny", "seed_stage2_tiny",
    "blip2_stage1_tiny", "blip2_stage2_tiny",
]  # fmt: skip


def test_every_class_with_a_settings_group_is_tried():
    assert {presets()[name].cls for name in ONE_OF_EACH} == set(WITH_GROUPS)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_files_hold_plain_data_and_make_the_groups_again(name, tmp_path):
    model = zoo.create_model(name)
    groups = [group for group in settings_groups(type(model)) if group != "optim"]
    path = of_a_run(model, tmp_path)
    stored = torch.load(path, weights_only=True)
    for group in groups:
        described = to_plain_data(model.hparams[group])
        assert stored["hyper_parameters"][group] == described == stored["zoo"]["init_args"][group]
    exported = save_weights(model, tmp_path / "a.safetensors")
    for again in (
        zoo.create_model(f"ckpt:{path}"),
        zoo.create_model(f"ckpt:{exported}"),
        type(model).load_from_checkpoint(path),
    ):
        assert dict(again.hparams) == dict(model.hparams)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_flat_arguments_of_a_file_are_read_as_the_groups_of_today(name, tmp_path):
    """Hyper-parameters, and the description beside the weights, as they were written before there were groups."""
    model = zoo.create_model(name)
    path = of_a_run(model, tmp_path)
    stored = torch.load(path, weights_only=True)
    cls = type(model)
    for args in (stored["hyper_parameters"], stored["zoo"]["init_args"]):
        for old, new in moved_names(cls).items():
            args[old] = value_at(args, new)
        for group in settings_groups(cls):
            if group != "optim":
                args.pop(group)
    torch.save(stored, tmp_path / "flat.ckpt")
    for again in (zoo.create_model(f"ckpt:{tmp_path / 'flat.ckpt'}"), cls.load_from_checkpoint(tmp_path / "flat.ckpt")):
        assert again.init_args() == model.init_args()


def test_a_quantizer_of_a_vq_vae_has_its_name_of_today():
    assert zoo.VQVAE.migrate({"quantizer": "gradient", "decay": 0.9}) == {"codebook": {"quantizer": "vq", "decay": 0.9}}
    assert zoo.VQVAE.migrate({"quantizer": "ema"}) == {"codebook": {"quantizer": "ema"}}


def test_a_discriminator_that_was_none_is_no_group():
    assert zoo.VQGAN.migrate({"disc": "none", "disc_width": 8, "beta": 1.0}) == {
        "discriminator": None,
        "codebook": {"beta": 1.0},
    }


@pytest.mark.parametrize(("quantizer", "decay"), [("ema", 0.5), ("vq", 0.99), ("l2", 0.99)])
def test_a_decay_that_did_nothing_is_left_out(quantizer, decay):
    """VQGAN gave it to running means alone, and today restarts of codes look at it too."""
    flat = {"quantizer": quantizer, "codebook_decay": 0.5, "restart_threshold": 0.1}
    assert typed_arguments(zoo.VQGAN, flat)["codebook"].decay == decay


def test_a_rank_of_zero_is_left_out_where_llava_trains_no_lora():
    assert typed_arguments(LLaVA, {"lora_rank": 0, "tuning": "projector"}) == {"tuning": "projector"}
    with pytest.raises(ValueError, match=r"lora\.rank must be a whole number of at least 1, got 0"):
        typed_arguments(LLaVA, {"lora_rank": 0, "tuning": "lora"})


def test_vqgan_has_few_arguments():
    assert len(inspect.signature(zoo.VQGAN).parameters) <= 20


@pytest.mark.parametrize("name", ["vqgan_tiny", "seed_llm_tiny"])
def test_hparams_that_a_logger_wrote_take_the_place_of_those_in_a_checkpoint(name, tmp_path):
    model = zoo.create_model(name)
    save_hparams_to_yaml(tmp_path / "hparams.yaml", model.init_args())
    path = of_a_run(model, tmp_path)
    stored = torch.load(path, weights_only=True)
    stored["hyper_parameters"] = {}
    torch.save(stored, path)
    again = type(model).load_from_checkpoint(path, hparams_file=tmp_path / "hparams.yaml")
    assert dict(again.hparams) == dict(model.hparams)


def test_a_dictionary_changes_fields_of_a_checkpoint(tmp_path):
    path = of_a_run(zoo.create_model("llava_lora_tiny"), tmp_path)
    for again in (
        zoo.create_model(f"ckpt:{path}", lora={"dropout": 0.5}),
        LLaVA.load_from_checkpoint(path, lora={"dropout": 0.5}),
    ):
        assert again.hparams["lora"] == LoRA(4, 8, 0.5)
    with pytest.warns(FutureWarning, match="lora_dropout is"):
        assert LLaVA.load_from_checkpoint(path, lora_dropout=0.25).hparams["lora"] == LoRA(4, 8, 0.25)
