"""Caption metrics against values of pycocoevalcap, by hand, on two processes; retrieval recall by hand."""

import json
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from zoo.metrics.captions import BLEU, ROUGEL, CIDErD, caption_tokens
from zoo.metrics.retrieval import retrieval_recall

FILE = Path(__file__).parents[1] / "fixtures" / "pycocoevalcap_captions.json"
CASES = json.loads(FILE.read_text(encoding="utf-8"))["cases"]


def tokens(case):
    return [c.split() for c in case["captions"]], [[r.split() for r in given] for given in case["references"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["name"])
def test_equal_to_pycocoevalcap(case):
    captions, references = tokens(case)
    metrics = {"cider_d": CIDErD(), "rouge_l": ROUGEL()} | {f"bleu{n}": BLEU(n) for n in range(1, 5)}
    wanted = case | {f"bleu{n}": case["bleu"][n - 1] for n in range(1, 5)}
    half = len(captions) // 2
    for name, metric in metrics.items():
        for part in (slice(half), slice(half, None)):  # an update without images changes nothing
            metric.update(captions[part], references[part])
        assert float(metric.compute()) == pytest.approx(wanted[name], rel=1e-10, abs=1e-12), name
        metric.reset()
        with pytest.raises(ValueError, match="call update first"):
            metric.images()


def test_cases_say_something():
    many = CASES[0]
    assert 1 < many["cider_d"] < 9
    assert 0.1 < many["bleu"][3] < 0.9
    assert 0.1 < many["rouge_l"] < 0.95
    assert next(c for c in CASES if c["name"] == "one image")["cider_d"] == 0


def test_rouge_by_hand():
    """Precision and recall are the best over the references, taken apart."""
    metric = ROUGEL()
    metric.update([["a", "b", "c", "d"]], [[["a", "c", "x", "x", "x", "x"], ["d"]]])
    precision, recall = 2 / 4, 1.0
    assert float(metric.compute()) == pytest.approx((1 + 1.44) * precision * recall / (recall + 1.44 * precision))


def test_tokens_of_strings():
    assert caption_tokens('The man\'s dog, "cannot" sit; isn\'t it? 3.5 m.') == (
        "the", "man", "'s", "dog", "can", "not", "sit", "is", "n't", "it", "3.5", "m",
    )  # fmt: skip
    assert caption_tokens("T-shirt (red)...") == ("t-shirt", "red")
    assert caption_tokens(["The", "Cat."]) == ("The", "Cat."), "given tokens pass unchanged"


def test_bad_input_ends_with_one_sentence():
    for captions, references, sentence in (
        (["a"], [], "1 captions and references of 0 images"),
        (["a"], ["a cat"], "at least one caption per image"),
        (["a"], [[]], "at least one caption per image"),
    ):
        with pytest.raises(ValueError, match=sentence) as caught:
            CIDErD().update(captions, references)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"order must lie in 1\.\.4"):
        BLEU(5)


def work(rank, folder):
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    captions, references = tokens(CASES[0])
    metrics = [CIDErD(), BLEU(), ROUGEL()]
    rows = slice(0, 7) if rank == 0 else slice(7, None)  # of different sizes
    for metric in metrics:
        metric.update(captions[rows], references[rows])
    torch.save([float(m.compute()) for m in metrics], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_all_captions_together(tmp_path):
    mp.spawn(work, args=(str(tmp_path),), nprocs=2)
    wanted = [CASES[0]["cider_d"], CASES[0]["bleu"][3], CASES[0]["rouge_l"]]
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == pytest.approx(wanted, rel=1e-9)


def test_recall_by_hand():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.1, 0.4], [0.3, 0.3, 0.1]])
    belongs = torch.tensor([[1, 0, 0], [0, 1, 0], [1, 0, 1]]).bool()
    # ranks of the best right candidate: 1, 3, and 2 because a wrong one is as good
    assert retrieval_recall(scores, belongs, (1, 2, 3)) == pytest.approx({"r@1": 1 / 3, "r@2": 2 / 3, "r@3": 1.0})
    assert retrieval_recall(torch.zeros(4, 4), torch.eye(4).bool(), (1,))["r@1"] == 0
    with pytest.raises(ValueError, match="no right candidate"):
        retrieval_recall(scores, torch.zeros(3, 3).bool())
