"""Every measured number stands in one record, and wherever it is shown it is that of the record."""

import json
import re
import shutil
from pathlib import Path

import pytest

from benchmarks import _report
from benchmarks._references import evaluate, fill_prose, fill_template
from benchmarks._stored import PUBLISHED, check_stored, read_by_name
from zoo.files.recipe_header import parse_header

ROOT = Path(__file__).parents[2]
PAPERS = sorted((ROOT / "docs" / "models").glob("*.md"))
RECORDS = {
    "a": {"metrics": {"x": 0.25, "val/r@1": 0.5}, "curves": {"y": [1, 2]}, "n": 1200},
    "runs/b": {"metrics": {"x": 2}, "commit": "abc"},
}


def test_all_numbers_are_those_of_the_records():
    assert _report.differences() == [], "run python -m benchmarks._report --write"


@pytest.fixture
def copy(tmp_path):
    """The files that show numbers, and the records."""
    for folder, pattern in (("benchmarks", "*.json"), ("benchmarks", "*.md"), ("zoo/weights", "*.json"),
                            ("recipes", "*.yaml"), ("docs", "*.md"), (".", "README.md")):  # fmt: skip
        for path in (ROOT / folder).rglob(pattern) if folder != "." else [ROOT / pattern]:
            target = tmp_path / path.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "old", "new", "sentence"),
    [
        ("docs/models/vqvae.md", "24.56<!--", "24.57<!--", "says 24.57 where the records give 24.56."),
        ("docs/models/dvae.md", "| 23.09 dB |", "| 23.19 dB |", "says 23.19 where the records give 23.09."),
        ("recipes/vqgan.yaml", "val/psnr = 26.82", "val/psnr = 26.92", "says 26.92 where the records give 26.82."),
        ("recipes/vqgan.yaml", "CPU, 39 minutes", "CPU, 38 minutes", "says 38 where the records give 39."),
        ("zoo/weights/vqgan_emoji.json", "349.8355407714844", "349.8355407714843",
         "says 349.8355407714843 where the records give 349.8355407714844."),
        ("benchmarks/RESULTS.md", "| 26.95 |", "| 26.96 |", "says 26.96 where the records give 26.95."),
        ("recipes/paper/vqgan_imagenet_f16.yaml", "7.94", "7.93", "says 7.93 where the records give 7.94."),
    ],
)  # fmt: skip
def test_one_digit_that_changes_is_named(copy, file, old, new, sentence):
    path = copy / file
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1
    path.write_text(text.replace(old, new), encoding="utf-8")
    line = text[: text.index(old)].count("\n") + 1
    assert _report.differences(copy) == [f"{file}:{line} {sentence}"]


def test_a_record_that_changes_is_named_wherever_its_number_is_shown(copy):
    path = copy / "benchmarks" / "results" / "vqvae_emoji.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    record["metrics"]["psnr"] = 24.6
    path.write_text(json.dumps(record), encoding="utf-8")
    found = _report.differences(copy)
    assert [re.sub(r":\d+", "", sentence) for sentence in found] == [
        "benchmarks/RESULTS.md says 24.56 where the records give 24.6.",
        "docs/models/vqvae.md says 24.56 where the records give 24.60.",
    ]


@pytest.mark.parametrize(
    ("file", "sentence"),
    [
        (
            "benchmarks/results/runs/vqvae.json",
            "recipes/vqvae.yaml: no record below benchmarks/results gives `expect` of its header, 'val/psnr = 24.90",
        ),
        ("benchmarks/results/vqvae_emoji.json", "there is no record benchmarks/results/vqvae_emoji.json"),
        ("benchmarks/tables/vqgan.md", "table vqgan needs the template benchmarks/tables/vqgan.md"),
    ],
)
def test_what_is_missing_is_named(copy, file, sentence):
    (copy / file).unlink()
    with pytest.raises(ValueError, match=re.escape(sentence)):
        _report.differences(copy)


@pytest.mark.parametrize("page", PAPERS, ids=lambda p: p.stem)
def test_measured_numbers_of_a_page_come_from_records(page):
    """In the section of results no table stands outside of markers, and no decimal number is without its reference."""
    text = page.read_text(encoding="utf-8")
    results = text[text.index("\n## Results") : text.index("\n## Use from Python")]
    results = re.sub(r"<!-- table: .*?<!-- end -->|```.*?```", "", results, flags=re.DOTALL)
    assert not re.findall(r"^\|.*", results, re.MULTILINE), "write the table as benchmarks/tables/NAME.md"
    results = re.sub(r"[\w.,]+<!--=.*?-->|`[^`]*`", "", results)
    assert not re.findall(r"(?<![-\w.:])\d+\.\d+(?![-\w:])", results), "mark it: NUMBER<!--= RECORD.METRIC:.2f -->"


@pytest.mark.parametrize(
    ("reference", "text"),
    [
        ("a.x:.2f", "0.25"),
        ("a.x:.1p", "25.0"),
        ("a.val/r@1:.0p", "50"),
        ("a.curves.y.1", "2"),
        ("a.n:,", "1,200"),
        ("runs/b.commit", "abc"),
        ("runs/b.x / a.x:.1f", "8.0"),
        ("1 / a.n:.2p", "0.08"),
        ("a.x * 4:.0f", "1"),
    ],
)
def test_a_reference_is_replaced_by_the_value_of_its_record(reference, text):
    assert evaluate(RECORDS, reference) == text
    assert fill_template(f"<{{{reference}}}>", RECORDS) == f"<{text}>"
    differing = []
    page = f"of 7<!--= {reference} --> dB"
    assert fill_prose(page, RECORDS, lambda *found: differing.append(found)) == f"of {text}<!--= {reference} --> dB"
    assert differing == [(3, "7", text, reference)]


def test_a_reference_of_a_record_to_itself():
    assert fill_template("{.x:.1f}, {.commit}", RECORDS, RECORDS["runs/b"]) == "2.0, abc"


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("c.x", "there is no record benchmarks/results/c.json"),
        ("a.z", "benchmarks/results/a.json has no 'z'"),
        ("a.curves.y.5", "has no '5'"),
        ("runs/b.commit:.2f", "'abc' cannot be written so"),
    ],
)
def test_references_to_nothing_are_refused(reference, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        evaluate(RECORDS, reference)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"date": None}, "date must be"),
        ({"metrics": {"x": "1"}}, "metric x must be a finite number"),
        ({"tolerance": {"x": "1"}}, "metric x must be a finite number"),
        ({"hardware": "a"}, "hardware"),
    ],
)
def test_records_of_runs_keep_their_schema(change, sentence):
    record = {"command": "a", "commit": None, "date": "2026-11-28", "seed": 0, "steps": None, "minutes": None,
              "machine": None, "metrics": {"x": 1.0}}  # fmt: skip
    check_stored(record)
    with pytest.raises(ValueError, match=sentence):
        check_stored(record | change)
    with pytest.raises(ValueError, match="source"):
        check_stored({"metrics": {}}, PUBLISHED)


def test_a_record_that_is_no_json_is_named(copy):
    (copy / "benchmarks" / "results" / "runs" / "vqvae.json").write_text('{"metrics": {', encoding="utf-8")
    with pytest.raises(ValueError, match=r"results/runs/vqvae\.json: Expecting"):
        _report.differences(copy)


def test_every_record_is_shown():
    """RESULTS.md has a section for the scripts, and one for each of these folders."""
    assert {name.partition("/")[0] for name in read_by_name() if "/" in name} == {"runs", "published"}


def test_recipes_that_promise_a_number_have_a_record():
    filled = {recipe for record in read_by_name().values() for recipe in record.get("headers", {})}
    promising = [p for p in (ROOT / "recipes").rglob("*.yaml") if re.search(r"\d", parse_header(p)["expect"])]
    assert [p.name for p in promising if p.relative_to(ROOT).as_posix() not in filled] == []


def test_a_recipe_that_was_not_run_needs_no_record(copy):
    for name in ("dvae.yaml", "new.yaml"):
        path = copy / "recipes" / name
        text = (copy / "recipes" / "dvae.yaml").read_text(encoding="utf-8")
        text = re.sub(r"# expect: .*", "# expect: not run", text)
        path.write_text(text, encoding="utf-8")
    (found,) = _report.differences(copy)
    assert found.startswith("recipes/dvae.yaml:6 says '# expect: not run' where the records give")


def test_the_command_says_what_differs_by_its_exit_code(monkeypatch, capsys):
    assert _report.main(["--check"]) == 0
    assert capsys.readouterr().out == "All numbers are those of the records.\n"
    monkeypatch.setattr(_report, "differences", lambda: ["a:1 says 1 where the records give 2."])
    assert _report.main(["--check"]) == 1
    assert capsys.readouterr().out == "a:1 says 1 where the records give 2.\n"
