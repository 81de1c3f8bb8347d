"""Every JSON that is written can be read by strict readers: no NaN, no Infinity."""

import json
import math
import re
from pathlib import Path

import pytest
import torch
from toys import BlurredImageData, TinyTokenizer, quiet_trainer

from zoo.callbacks.evaluation import Evaluation
from zoo.files.strict_json import dump_json, find_non_finite

ROOT = Path(__file__).parents[2]


def strictly(text):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize(("number", "name"), [(math.nan, "nan"), (math.inf, "inf"), (-math.inf, "-inf")])
def test_numbers_that_json_lacks_are_refused_by_name_or_become_null(number, name):
    value = {"metrics": {"psnr": 1.5, "rfid": number}, "list": [1, [2.0, number]], "pair": (number,), "word": "NaN"}
    assert find_non_finite(value) == {"metrics.rfid": name, "list.1.1": name, "pair.0": name}
    with pytest.raises(ValueError, match=rf"metrics\.rfid is {name}"):
        dump_json(value)
    assert strictly(dump_json(value, not_finite="null")) == {
        "metrics": {"psnr": 1.5, "rfid": None}, "list": [1, [2.0, None]], "pair": [None], "word": "NaN",
    }  # fmt: skip
    with pytest.raises(ValueError, match=f"the value is {name}"):
        dump_json(number)
    assert dump_json({"ü": Path("a")}, default=str, ascii_only=False, indent=None) == '{"ü": "a"}'


def test_nothing_else_writes_json():
    sources = [path for folder in ("zoo", "datamodules", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    found = [path.name for path in sources if re.search(r"\bjson\.dumps?\(", path.read_text())]
    assert len(sources) > 100
    assert found == ["strict_json.py"]


def test_all_that_is_shipped_is_strict():
    files = [path for folder in ("zoo", "benchmarks") for path in (ROOT / folder).rglob("*.json")]
    assert len(files) > 20
    for path in files:
        strictly(path.read_text(encoding="utf-8"))


class Perfect(TinyTokenizer):
    """Decodes to the very images: their PSNR is infinite."""

    def encode(self, images):
        self.seen = images
        return super().encode(images)

    def decode(self, tokens):
        return self.seen.float() / 255


def test_the_protocol_of_a_test_is_json_though_a_value_is_infinite(tmp_path):
    trainer = quiet_trainer(tmp_path, callbacks=[Evaluation(lite0=False)])
    data = BlurredImageData(8)
    data.save_hyperparameters({"scale": math.nan}, logger=False)
    trainer.test(Perfect(), data, verbose=False)
    written = strictly((tmp_path / "protocol.json").read_text())
    assert written["metrics"]["test/psnr"] is None
    assert written["metrics"]["test/ssim"] == pytest.approx(1)
    assert written["not_finite"] == {"data.scale": "nan", "metrics.test/psnr": "inf"}


def test_a_token_header_and_a_card_refuse_what_is_no_number(tmp_path):
    from zoo.tokens.shards import make_header, write_header

    header = make_header(TinyTokenizer(), split="train", count=1) | {"count": math.nan}
    with pytest.raises(ValueError, match="count is nan"):
        write_header(tmp_path, header)
    assert not list(tmp_path.iterdir())


def test_exported_configurations_are_strict(tmp_path):
    import zoo
    from zoo.checkpoints.export import save_weights

    model = zoo.create_model("dvae_tiny")
    model.hparams["beta"] = (0.0, math.inf, 5)
    with pytest.raises(ValueError, match=r"init_args\.beta\.1 is inf"):
        save_weights(model, tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())
    assert torch.is_tensor(model.encoder.blocks.input.w)
