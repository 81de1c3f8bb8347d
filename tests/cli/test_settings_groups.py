"""Settings groups on the command line, in YAML and as options, under the names of today and of older versions."""

import inspect
from pathlib import Path

import pytest
import yaml
from command_line import message

import zoo
from zoo.init_args import to_plain_data
from zoo.language.lora import LoRA


@pytest.fixture
def model(run_cli, in_tmp):
    """Constructor arguments after parsing, and what the terminal said."""

    def parse(*args, cls=None, **settings):
        files = []
        if cls is not None:
            Path("a.yaml").write_text(
                yaml.safe_dump({"model": {"class_path": cls, "init_args": settings}}, sort_keys=False)
            )
            files = ["--config", "a.yaml"]
        code, out, err = run_cli("fit", "--data=EmojiData", *files, *args, "--print_config")
        assert code == 0, err
        return yaml.safe_load(out)["model"]["init_args"], err

    return parse


LORA = {"rank": 16, "alpha": 32, "dropout": 0.05, "train_embeddings_and_norms": None}


@pytest.mark.parametrize("option", ["--model.lora.rank=8", "--model.init_args.lora.rank=8"])
def test_a_field_of_a_group_is_an_option(model, option):
    assert model("--model=SEEDLLM", option)[0]["lora"] == LORA | {"rank": 8}


def test_fields_of_a_recipe_are_changed_by_options_one_by_one(model):
    args, err = model("--model.lora.alpha=7", "--model.optim.lr=0.1", cls="zoo.SEEDLLM", lora={"rank": 2, "dropout": 0})
    assert args["lora"] == LORA | {"rank": 2, "alpha": 7, "dropout": 0.0}
    assert err == ""
    assert args["optim"]["lr"] == 0.1
    assert args["optim"]["warmup_steps"] == 900


@pytest.mark.parametrize("cls", ["LLaVA", "SEEDLLM"])
def test_fields_that_a_recipe_leaves_out_are_those_of_the_constructor(model, cls):
    default = LORA | ({"rank": 128, "alpha": 256} if cls == "LLaVA" else {})
    assert model(cls=f"zoo.{cls}", lora={"dropout": 0.5})[0]["lora"] == default | {"dropout": 0.5}


def test_an_optional_group_can_be_null(model):
    assert model("--model.lora=null", cls="zoo.SEEDLLM", lora={"rank": 2})[0]["lora"] is None
    assert model(cls="zoo.SEEDLLM", lora=None)[0]["lora"] is None
    assert model("--model.lora.rank=4", cls="zoo.SEEDLLM", lora=None)[0]["lora"] == LORA | {"rank": 4}


#: class, group, a field, its text, its value
FIELDS = [
    ("VQGAN", "codebook", "vocab_size", "512", 512),
    ("VQGAN", "codebook", "tau", "[0.9,0.1,5]", [0.9, 0.1, 5]),
    ("VQGAN", "discriminator", "start", "7", 7),
    ("VQVAE", "codebook", "init", "kmeans", "kmeans"),
    ("SEEDTokenizer", "codebook", "entropy_temperature", "0.5", 0.5),
    ("SEEDTokenizer", "qformer", "queries", "8", 8),
    ("SEEDStage1", "qformer", "query_mlp_width", "8", 8),
    ("BLIP2Stage1", "qformer", "norm", "pre", "pre"),
    ("BLIP2Stage2", "qformer", "mixing", "joint", "joint"),
]


@pytest.mark.parametrize(("cls", "group", "name", "text", "value"), FIELDS)
def test_a_field_of_every_group_can_be_given_in_every_way(model, cls, group, name, text, value):
    """As an option of both spellings, and in a recipe; the other fields are those of the constructor."""
    default = to_plain_data(inspect.signature(getattr(zoo, cls)).parameters[group].default)
    for option in (f"--model.{group}.{name}={text}", f"--model.init_args.{group}.{name}={text}"):
        assert model(f"--model={cls}", option)[0][group] == default | {name: value}
    assert model(cls=f"zoo.{cls}", **{group: {name: value}})[0][group] == default | {name: value}


@pytest.mark.parametrize(
    ("cls", "group", "name", "given", "options"),
    [
        ("BLIP2Stage1", "qformer", "query_mlp_width", {"query_mlp_width": 8, "depth": 3}, ["--model.{}.{}=null"]),
        ("SEEDStage1", "qformer", "query_mlp_width", {"query_mlp_width": 8}, ["--model.init_args.{}.{}", "null"]),
        ("BLIP2Stage1", "qformer", "query_mlp_width", {"query_mlp_width": 8}, ["--model.query_mlp_width=null"]),
        ("SEEDLLM", "lora", "train_embeddings_and_norms", {"train_embeddings_and_norms": True}, ["--model.{}.{}=~"]),
    ],
)
def test_a_field_can_be_null_as_an_option_and_the_others_stay(model, cls, group, name, given, options):
    found, _ = model(*(option.format(group, name) for option in options), cls=f"zoo.{cls}", **{group: given})
    default = to_plain_data(inspect.signature(getattr(zoo, cls)).parameters[group].default)
    assert found[group] == default | given | {name: None}


def test_fields_take_references_into_other_parts_of_a_recipe(run_cli, in_tmp):
    Path("a.yaml").write_text(
        "model: {class_path: zoo.VQGAN, init_args: {vocab_size: '${data.init_args.image_size}'}}\n"
        "data: {class_path: datamodules.EmojiData, init_args: {image_size: 48}}\n"
    )
    code, out, err = run_cli("fit", "--config", "a.yaml", "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["model"]["init_args"]["codebook"]["vocab_size"] == 48


def test_a_discriminator_can_be_null_in_every_way(model):
    assert model("--model=VQGAN", "--model.discriminator=null")[0]["discriminator"] is None
    assert model("--model=VQGAN", "--model.disc=none", "--model.disc_width=8")[0]["discriminator"] is None
    assert model(cls="zoo.VQGAN", discriminator=None)[0]["discriminator"] is None
    assert model(cls="zoo.VQGAN", disc="none", disc_width=8)[0]["discriminator"] is None


def test_a_value_with_another_name_of_today_is_changed_too(model):
    args, err = model("--model=VQVAE", "--model.quantizer=gradient")
    assert args["codebook"]["quantizer"] == "vq"
    assert err == "VQVAE has settings under other names now: quantizer is codebook.quantizer\n"


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.codebook.vocab_sise=3", "takes no 'codebook.vocab_sise'; did you mean 'codebook.vocab_size'"),
        ("--model.codebook.quantizer=emma", "codebook.quantizer"),
        ("--model.discriminator.strat=3", "takes no 'strat'; did you mean 'start'"),
        ("--model.disc_strt=3", "takes no 'disc_strt'; did you mean 'discriminator.start' or 'discriminator.factor'?"),
        ("--model.vocab_sise=3", "takes no 'vocab_sise'; did you mean 'codebook.vocab_size'?"),
        (
            "--model.discriminator=patchgan",
            "write --model.discriminator.kind=VALUE, in a recipe",
        ),
        ("--model.codebook=3", "model.codebook has fields, such as model.codebook.vocab_size: write"),
        ("--model.codebook=null", "model.codebook cannot be null: leave it out"),
        ("--model.discriminator.r1=1", "set discriminator.kind to stylegan, or r1 to 0"),
        ("--model.codebook.restart_threshold=-1", "codebook.restart_threshold must be a number of at least 0, got -1"),
    ],
)
def test_mistakes_in_the_groups_of_vqgan_are_named_in_one_line(run_cli, in_tmp, option, said):
    code = 1 if " to 0" in said or "must be" in said or "cannot" in said else 2
    assert said in message(run_cli, "fit", "--model=VQGAN", "--data=EmojiData", option, code=code)


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--model.lora.rnak=3", "takes no 'rnak'; did you mean 'rank'?"),
        ("--model.lora.rank=many", "model.lora.rank: expected int, got 'many'"),
        ("--model.lora.rank=0", "lora.rank must be a whole number of at least 1, got 0"),
        ("--model.lor.rank=3", "zoo.SEEDLLM takes no 'lor"),
    ],
)
def test_mistakes_in_a_group_are_named_in_one_line(run_cli, in_tmp, option, said):
    code = 1 if "must be" in said else 2
    assert said in message(run_cli, "fit", "--model=SEEDLLM", "--data=EmojiData", option, code=code)


def test_help_shows_the_fields_of_a_group(run_cli):
    code, out, _ = run_cli("fit", "--model.help=zoo.LLaVA")
    assert code == 0
    assert "--model.lora.rank" in out
    assert "of the matrices" in out


# ---------------------------------------------------------------- names of older versions


def test_a_recipe_with_older_names_works_and_says_so_in_one_line(model):
    args, err = model(cls="zoo.LLaVA", lora_rank=7, lora_alpha=9, tuning="lora", optim={"lr": 1e-4})
    assert args["lora"] == LORA | {"rank": 7, "alpha": 9}
    assert args["tuning"] == "lora"
    assert args["optim"]["lr"] == 1e-4
    assert err == "a.yaml has settings of LLaVA under older names: lora_rank is lora.rank, lora_alpha is lora.alpha\n"


@pytest.mark.parametrize("typed", [["--model.lora_rank=7"], ["--model.init_args.lora_rank", "7"]])
def test_an_option_with_an_older_name_works_and_says_so_in_one_line(model, typed):
    args, err = model("--model=LLaVA", *typed)
    assert args["lora"]["rank"] == 7
    assert args["lora"]["alpha"] == 256
    assert err == "LLaVA has settings under other names now: lora_rank is lora.rank\n"


@pytest.mark.parametrize(
    ("typed", "files", "place"),
    [
        (["--config", "a.yaml"], {"a.yaml": "model: b.yaml", "b.yaml": "ARGUMENTS"}, "a.yaml"),
        (['--config={"model": ARGUMENTS}'], {}, "the configuration"),
        (["--model=ARGUMENTS"], {}, "the configuration"),
        (["--model=a.yaml"], {"a.yaml": "ARGUMENTS"}, "a.yaml"),
        (["--model=LLaVA", '--model.init_args={"lora_rank": 7}'], {}, "the configuration"),
    ],
)
def test_older_names_work_wherever_arguments_can_be_given(model, typed, files, place):
    arguments = '{"class_path": "LLaVA", "init_args": {"lora_rank": 7}}'
    for name, text in files.items():
        Path(name).write_text(text.replace("ARGUMENTS", arguments))
    args, err = model(*(word.replace("ARGUMENTS", arguments) for word in typed))
    assert args["lora"] == LORA | {"rank": 7, "alpha": 256}
    assert err == f"{place} has settings of LLaVA under older names: lora_rank is lora.rank\n"


@pytest.mark.parametrize("cls", ["mine_of_older_names.Mine", "mine_of_older_names.VQGAN"])
def test_older_names_work_for_classes_of_a_user_that_inherit_them(model, cls, monkeypatch):
    Path("mine_of_older_names.py").write_text(
        "import zoo\nclass Mine(zoo.LLaVA):\n    pass\nclass VQGAN(zoo.LLaVA):\n    pass\n"
    )
    monkeypatch.syspath_prepend(str(Path.cwd()))
    args, err = model(cls=cls, lora_rank=7)
    assert args["lora"]["rank"] == 7
    assert err == f"a.yaml has settings of {cls[20:]} under older names: lora_rank is lora.rank\n"
    assert model(f"--model={cls}", "--model.lora_rank=8")[0]["lora"]["rank"] == 8


@pytest.mark.parametrize("name", ["./no.yaml", "no.yaml", "no.such.Class", "3.5", ".", "os.path.join", "zoo.Optim"])
def test_what_is_no_model_ends_in_one_line(run_cli, in_tmp, name):
    assert "model: " in message(run_cli, "fit", f"--model={name}", "--data=EmojiData", "--model.lora_rank=3")


def test_older_names_work_in_a_recipe_of_all_commands(run_cli, in_tmp):
    Path("a.yaml").write_text("fit: {model: {class_path: LLaVA, init_args: {lora_rank: 7}}}\n")
    code, out, err = run_cli("--config", "a.yaml", "fit", "--data=EmojiData", "--print_config")
    assert code == 0, err
    assert yaml.safe_load(out)["model"]["init_args"]["lora"]["rank"] == 7


def test_an_option_with_an_older_name_works_where_a_recipe_names_the_class_alone(model):
    Path("a.yaml").write_text("model: LLaVA\n")
    args, err = model("--config", "a.yaml", "--model.lora_rank=7", "--model.lora_rank=8")
    assert args["lora"]["rank"] == 8
    assert err == "LLaVA has settings under other names now: lora_rank is lora.rank\n"


def test_options_with_older_names_change_recipes_with_names_of_today(model):
    args, _ = model("--model.lora_alpha=7", cls="zoo.SEEDLLM", lora={"rank": 2})
    assert args["lora"] == LORA | {"rank": 2, "alpha": 7}


def test_what_stood_for_no_group_is_null(model):
    assert model("--model=SEEDLLM", "--model.lora_rank=0", "--model.lora_alpha=9")[0]["lora"] is None
    assert model(cls="zoo.SEEDLLM", lora_rank=0, lora_alpha=9)[0]["lora"] is None


def test_a_setting_under_both_names_is_refused(run_cli, in_tmp):
    Path("a.yaml").write_text("model: {class_path: zoo.LLaVA, init_args: {lora_rank: 7, lora: {rank: 3}}}\n")
    said = message(run_cli, "fit", "--config", "a.yaml", "--data=EmojiData")
    assert "lora_rank is lora.rank now, and lora is given too: leave lora_rank out" in said


def test_words_and_references_of_a_recipe_with_older_names_stay(run_cli, in_tmp):
    Path("a.yaml").write_text(
        "seed_everything: ${data.init_args.batch_size}\nmodel:\n  class_path: zoo.LLaVA\n  init_args:\n"
        "    image_size: ${data.init_args.image_size}\n    vision: '1e3'\n    lora_rank: 2\n"
        "data: {class_path: datamodules.EmojiData, init_args: {image_size: 48, batch_size: 3}}\n"
    )
    code, out, err = run_cli("fit", "--config", "a.yaml", "--model.language_model=1e-4", "--print_config")
    found = yaml.safe_load(out)
    assert code == 0, err
    assert found["seed_everything"] == 3
    assert found["model"]["init_args"]["image_size"] == 48
    assert found["model"]["init_args"]["vision"] == "1e3"
    assert found["model"]["init_args"]["language_model"] == "1e-4"


def test_the_class_says_the_default_of_an_optional_group(model):
    """A recipe that names some fields takes the others from the class: the constructor's default must be the same."""
    assert model("--model=SEEDLLM")[0]["lora"] == LORA == vars(LoRA())
