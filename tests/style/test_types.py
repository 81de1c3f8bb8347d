"""The ratchet of types: mypy's strict mode reads every file, and no setting or comment takes one out."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("benchmarks", "datamodules", "zoo")
FILES = [path.relative_to(ROOT).as_posix() for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]


def test_strict_mode_reads_all_packages():
    assert SETTINGS["strict"] is True
    assert SETTINGS["files"] == list(PACKAGES)
    assert "exclude" not in SETTINGS


def test_no_setting_or_comment_switches_it_off_for_a_file():
    switched = [m for override in SETTINGS["overrides"] for m in override["module"] if m.startswith(PACKAGES)]
    assert switched == []
    comment = re.compile(r"^# *(mypy:|type: *ignore *$)", re.MULTILINE)
    assert [name for name in FILES if comment.search((ROOT / name).read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_mypy_finds_nothing(tmp_path):
    command = [sys.executable, "-m", "mypy", "--cache-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-500:]
