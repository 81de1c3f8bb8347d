"""A busy machine is waited for; a process that hangs or fails is not."""

import time

import pytest
from patience import run_together

TALKS = "import time\nfor i in range(6): print(i, flush=True); time.sleep(0.5)"
HANGS = "import time; print('begins', flush=True); time.sleep(60)"
FAILS = "raise SystemExit('the reason')"


def run(tmp_path, *codes, silence):
    logs = [tmp_path / f"{i}.log" for i in range(len(codes))]
    return run_together([["-c", code] for code in codes], logs, [{}] * len(codes), silence=silence)


def test_a_process_that_goes_on_printing_may_take_longer_than_the_limit(tmp_path):
    assert run(tmp_path, TALKS, silence=2.5)[0].split() == list("012345")


def test_one_that_falls_silent_is_ended(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match="no line for 2 s: begins"):
        run(tmp_path, HANGS, silence=2)
    assert time.monotonic() - start < 30


def test_where_one_fails_the_other_is_not_waited_for_and_the_first_is_blamed(tmp_path):
    start = time.monotonic()
    with pytest.raises(AssertionError, match="the reason"):
        run(tmp_path, HANGS, FAILS, silence=50)
    assert time.monotonic() - start < 30
