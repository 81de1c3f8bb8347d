"""A test over two ranks: each image counts once, the ranks agree, and one record is written."""

import json
import sys
from pathlib import Path

import pytest
from patience import run_two_ranks

COUNT = 11  # one of them is seen twice, so that both ranks have as many


def measure(folder, **options):
    import torch
    from toys import ToyData, quiet_trainer

    import zoo
    from zoo.callbacks import Captions, Samples

    logged = {}
    for name, callback in (("llava_tiny", Captions(max_new_tokens=3)), ("maskgit_tiny", Samples(steps=2))):
        torch.manual_seed(0)
        model = zoo.create_model(name)
        trainer = quiet_trainer(folder, callbacks=[callback], **options)
        logged |= trainer.test(model, ToyData(32, num_classes=9, count=COUNT), verbose=False)[0]
    return logged


@pytest.mark.slow
@pytest.mark.timeout(0)  # run_two_ranks ends what hangs
def test_two_ranks_measure_every_image_once(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))  # no Inception weights there
    (tmp_path / "one").mkdir()
    said = run_two_ranks(__file__, [str(tmp_path / "two")], tmp_path)
    logged = json.loads(said.rpartition("LOGGED ")[2])
    alone = measure(tmp_path / "one")
    one, two = (
        {kind: json.loads((tmp_path / place / f"{kind}.json").read_text()) for kind in ("captions", "generation")}
        for place in ("one", "two")
    )
    for name in ("test/cider_d", "test/bleu_4", "test/rouge_l", "test/distinct_captions"):
        assert logged[name] == alone[name], name
    assert two["captions"]["metrics"] == one["captions"]["metrics"]
    assert two["captions"]["protocol"]["samples"] == one["captions"]["protocol"]["samples"]
    assert two["captions"]["n"] == COUNT
    assert two["generation"]["n"] == COUNT
    assert two["generation"]["protocol"]["reference"]["num_images"] == COUNT
    assert two["generation"]["protocol"]["generated"]["ranks"] == 2
    assert logged["test/fd_lite0"] == pytest.approx(two["generation"]["metrics"]["fd_lite0"], rel=1e-6)
    # other noise, of as many images of the same model
    assert logged["test/fd_lite0"] == pytest.approx(alone["test/fd_lite0"], rel=0.5)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    found = measure(Path(sys.argv[1]), devices=2, strategy="ddp")
    print("LOGGED", json.dumps(found), flush=True)
