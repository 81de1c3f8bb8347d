"""One report of captions: the values of the single metrics, each image once, and what they depend on."""

import pytest

from zoo.metrics.caption_report import CaptionReport
from zoo.metrics.captions import BLEU, ROUGEL, CIDErD

WRITTEN = ["a red cat", "two dogs", "a red cat", "sun over the sea"]
REFERENCES = [["a red cat sits", "cat"], ["two dogs run"], ["a green bird"], ["the sun over a sea", "sea"]]


def filled():
    report = CaptionReport()
    report.update(WRITTEN[:3], REFERENCES[:3])
    report.update(WRITTEN[3:], REFERENCES[3:])
    return report


@pytest.mark.parametrize(("name", "metric"), [("cider_d", CIDErD()), ("bleu_4", BLEU()), ("rouge_l", ROUGEL())])
def test_each_value_is_that_of_the_single_metric(name, metric):
    metric.update(WRITTEN, REFERENCES)
    assert filled().compute()[name] == float(metric.compute())


def test_different_captions_are_counted():
    assert filled().compute()["distinct_captions"] == 3


def test_what_was_written_stands_beside_its_references():
    report = filled()
    assert report.num_images == 4
    assert report.records()[1] == {"caption": "two dogs", "references": ["two dogs run"]}


def test_reset_forgets_all_images():
    report = filled()
    report.reset()
    assert report.num_images == 0
    with pytest.raises(ValueError, match="there are no captions to score: call update first"):
        report.compute()


def test_the_protocol_says_how_was_written():
    facts = CaptionReport().protocol({"num_beams": 3, "max_new_tokens": 20, "prompt": "a"})
    assert facts["captions"].startswith("3 beams, at most 20 tokens; references tokenised by")
    assert facts["writing"] == {"prompt": "a"}
    assert "writing" not in CaptionReport().protocol({"num_beams": 1, "max_new_tokens": 2})


def test_images_without_a_reference_are_refused():
    with pytest.raises(ValueError, match="at least one caption per image"):
        CaptionReport().update(["a"], [[]])
