"""The scripts of ``.ci`` are the ones that the workflow runs, and those that contributors are told of."""

import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / ".ci").iterdir() if path.stat().st_mode & 0o100)
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_the_workflow_runs_every_script():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    (job,) = workflow["jobs"].values()
    assert sorted(job["strategy"]["matrix"]["script"]) == SCRIPTS
    assert job["steps"][-1] == {"run": ".ci/${{ matrix.script }}"}
    version = next(step["with"]["python-version"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    assert PROJECT["requires-python"] == f">={version}"


@pytest.mark.parametrize("script", [*SCRIPTS, "clean_clone"])
def test_scripts_are_bash_and_contributors_are_told_of_them(script):
    done = subprocess.run(["bash", "-n", str(ROOT / ".ci" / script)], capture_output=True, text=True)
    assert done.stderr == ""
    said = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert script == "clean_clone" or f"`.ci/{script}`" in said


def test_contributors_are_told_of_files_that_there_are():
    said = (ROOT / ".github" / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = [word.strip("`") for word in said.split("`") if word.startswith(("tests/", ".ci/")) and " " not in word]
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("form", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem)
def test_forms_ask_for_what_they_require(form):
    content = yaml.safe_load(form.read_text(encoding="utf-8"))
    if form.stem == "config":
        assert content == {"blank_issues_enabled": True}
        return
    assert set(content) == {"name", "description", "labels", "body"}
    assert all(field["validations"] == {"required": True} for field in content["body"])
    assert len({field["id"] for field in content["body"]}) == len(content["body"])


def test_pinned_packages_are_not_updated():
    updates = yaml.safe_load((ROOT / ".github" / "dependabot.yml").read_text(encoding="utf-8"))["updates"]
    ignored = {entry["dependency-name"] for entry in updates[0]["ignore"]}
    extras = [line for lines in PROJECT["optional-dependencies"].values() for line in lines]
    assert ignored == {line.partition("==")[0] for line in extras if "==" in line}
