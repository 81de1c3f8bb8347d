"""Checkpoints, saved configurations and token shards that were written before the redesign load, and runs go on."""

import observed
import pytest
import torch
import yaml
from observed import migrated

import datamodules
import zoo
from zoo.presets import find_class

FACTS = observed.read("checkpoints.json")
RUNS = sorted(path.name for path in (observed.FOLDER / "command_line").iterdir())
GO_ON = [name for name, facts in FACTS.items() if "second_step" in facts]
SHARDS = observed.FOLDER / "tokens"


@pytest.fixture(autouse=True)
def _as_the_command_line_sets_it(monkeypatch):
    """Lightning reads checkpoints of the command line with a call that jsonargparse warns of."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")


@pytest.fixture(params=[*FACTS, *(f"run_{name}" for name in RUNS)])
def name(request):
    return request.param


@pytest.fixture
def path(name, tmp_path):
    run = name.removeprefix("run_")
    return observed.unpack(f"command_line/{run}/last.ckpt" if run != name else f"checkpoints/{name}.ckpt", tmp_path)


def class_in(stored):
    cls = getattr(zoo, stored["zoo"]["class"].rpartition(".")[2])
    assert find_class(stored["zoo"]["class"]) is cls
    return cls


def test_a_checkpoint_of_then_loads_in_all_ways(name, path):
    stored = torch.load(path, weights_only=True)
    cls, given = class_in(stored), stored["zoo"]["init_args"]
    by_name = zoo.create_model(f"ckpt:{path}")
    by_class = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    as_weights = cls(**by_name.hparams)
    as_weights.load_weights(f"ckpt:{path}")
    for way, model in {"create_model": by_name, "load_from_checkpoint": by_class, "load_weights": as_weights}.items():
        assert type(model) is cls, f"{name} by {way}"
        lines = observed.argument_differences(cls, model.init_args(), given)
        assert not lines, observed.said(f"init_args of {name} by {way}", lines)
        state = model.state_dict()
        assert state.keys() == stored["state_dict"].keys(), (
            f"{name} by {way}: {sorted(state.keys() ^ stored['state_dict'].keys())}"
        )
        others = [n for n, value in stored["state_dict"].items() if not torch.equal(value, state[n])]
        assert not others, f"{name} by {way}: other values in {', '.join(others)}"
    assert migrated(cls, given).keys() <= by_name.init_args().keys()


@pytest.mark.parametrize("name", FACTS)
def test_a_model_of_then_has_the_same_losses(name, path):
    model = zoo.create_model(f"ckpt:{path}")
    observed.fill_tokenizers(model)
    lines = observed.number_differences(observed.losses(model, False), FACTS[name]["eval"])
    assert not lines, observed.said(f"losses of {name}", lines)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("name", GO_ON)
def test_a_python_run_of_then_goes_on_to_the_same_weights(name, path, tmp_path):
    """The optimizer's state too belongs to the same parameters."""
    model = zoo.create_model(f"ckpt:{path}")
    observed.fill_tokenizers(model)
    assert observed.trained(model, tmp_path, 2, path).global_step == 2
    lines = observed.number_differences(observed.by_part(model.state_dict()), FACTS[name]["second_step"], 1e-4)
    assert not lines, observed.said(f"the second step of {name}", lines)


# ---------------------------------------------------------------- runs of the command line


@pytest.mark.parametrize("run", RUNS)
def test_a_saved_configuration_parses_to_the_same(run, in_tmp):
    before = yaml.safe_load((observed.lay_out(run, in_tmp) / "config.yaml").read_text(encoding="utf-8"))
    found = observed.parsed(f"runs/{run}/config.yaml")
    assert found["model"]["class_path"] == before["model"]["class_path"]
    cls = getattr(zoo, before["model"]["class_path"].rpartition(".")[2])
    lines = observed.argument_differences(cls, found["model"].pop("init_args"), before["model"].pop("init_args"))
    lines = [f"model.{line}" for line in lines] + observed.differences(found, before)
    assert not lines, observed.said(f"runs/{run}/config.yaml", lines)


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS)
def test_a_run_of_then_goes_on(run, in_tmp, run_cli):
    """Optimizer, moving averages and the place in the run are restored; the command is the one that was advised."""
    place = observed.lay_out(run, in_tmp)
    before = torch.load(place / "last.ckpt", weights_only=True)
    code, _, err = run_cli(
        "fit", "--config", f"runs/{run}/config.yaml", "--ckpt_path", f"runs/{run}/last.ckpt", "--trainer.max_steps=2",
    )  # fmt: skip
    assert code == 0, err
    after = torch.load(place / "last.ckpt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (1, 2)
    assert after["state_dict"].keys() == before["state_dict"].keys()
    assert any(not torch.equal(v, before["state_dict"][n]) for n, v in after["state_dict"].items()), "nothing learned"
    groups = [[len(g["params"]) for g in c["optimizer_states"][0]["param_groups"]] for c in (before, after)]
    assert groups[0] == groups[1], "the optimizer groups other parameters"


# ---------------------------------------------------------------- token shards


@pytest.mark.parametrize("split", ["train", "val"])
def test_token_shards_of_then_are_read(split, in_tmp):
    """They belong to the tokenizer that wrote them, which makes the same ids of the images that they hold."""
    checkpoint = observed.lay_out("dvae", in_tmp) / "last.ckpt"
    data = datamodules.TokenData(str(SHARDS), image_size=32, batch_size=4, tokenizer=f"ckpt:{checkpoint}")
    data.setup("fit")
    samples = {"train": data.train, "val": data.val}[split]
    assert len(samples) == data.headers[split]["count"] > 1
    assert data.num_classes == 3
    model = zoo.create_model(f"ckpt:{checkpoint}").eval()
    for i in range(len(samples)):
        sample = samples[i]
        assert {"ids", "index", "label", "image", "file"} <= sample.keys()
        assert f"class_{sample['label']}" in sample["file"]
        ids = model.encode(sample["image"][None]).ids[0]
        assert torch.equal(ids, sample["ids"]), f"{split}: other ids of sample {i}"


def test_a_second_stage_takes_the_shards_of_then(in_tmp):
    checkpoint = observed.lay_out("dvae", in_tmp) / "last.ckpt"
    data = datamodules.TokenData(str(SHARDS), batch_size=4)
    model = zoo.create_model("maskgit_tiny", tokenizer=f"ckpt:{checkpoint}", num_classes=3)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert torch.equal(model.encode(batch["image"]).ids, batch["ids"])
    assert model.losses(batch)["loss"].isfinite()


def test_every_family_has_a_checkpoint_of_then():
    classes = {facts["preset"] for facts in observed.read("numbers.json.gz").values()}
    assert len(FACTS) >= 20
    assert len(classes) >= 15
    assert len(GO_ON) >= 2
    assert len(RUNS) >= 4
