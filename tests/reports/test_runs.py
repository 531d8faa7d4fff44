"""Reports of runs: what turned right and wrong, pictures, and what is said of runs that cannot be reported."""

import csv
import json
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm_lit.callbacks import ForgettingCallback, SummaryCallback
from mllm_lit.data.sample import Sample
from mllm_lit.reports import ReportError, write_runs
from mllm_lit.reports.predictions import by_type, pairs_of, read_records, samples_of
from mllm_lit.reports.runs import write_run as write_own
from tests.conftest import REPOSITORY
from tests.reports.page import Page
from tests.reports.toy import record, summary_of, validation, write_records, write_run

HOSTILE = "<script>alert(1)</script>\"'><img src=http://a.example/x.png onerror=alert(1)> $\\frac$ 日本 | a_b & 5 %"
BEFORE = [
    record("test-0", 1.0, 1.0, labels=["red", "G1-6"]),
    record("test-1", 0.0, 2.0, labels=["red"], question=HOSTILE, prediction=HOSTILE),
    record("test-2", 0.3, 1.0, labels=["blue"], image=[]),
    record("test-3", 0.6, 1.0, labels=["blue"]),
]
AFTER = [
    record("test-0", 0.0, 3.0, labels=["red", "G1-6"]),
    record("test-1", 1.0, 0.5, labels=["red"], question=HOSTILE, prediction="red"),
    record("test-2", 0.9, 0.9, labels=["blue"], image=[]),
    record("test-3", 0.5, 1.5, labels=["blue"]),
]


def run_of(folder: Path, target: float = 60.0, after: Any = None, **changes: Any) -> Path:
    """A finished run on a toy target and a source without scores of its own."""
    during = [validation(2, 0.9, 20, 80), validation(4, 0.3, 30, 70)]
    summary = summary_of(target, {"source": 30.0}, during=during) | changes
    task = {"task": {"class_path": "tests.toy.Toy", "init_args": {}}, "root": str(folder.parent / "data")}
    source = {"class_path": "mllm_lit.sources.Source", "init_args": {**task, "split": "test"}}
    sources = {"class_path": "mllm_lit.sources.Sources", "init_args": {"sets": {"source": source}}}
    data = {"class_path": "mllm_lit.data.VQADataModule", "init_args": {**task, "sources": sources, "test_split": None}}
    (folder.parent / "data").mkdir(exist_ok=True, parents=True)
    write_run(
        folder, summary, {"data": data, "model": {"adapter": {"class_path": "x.LoRA", "init_args": {"lr": target}}}}
    )
    for phase, records in (("before", BEFORE), ("after", AFTER if after is None else after)):
        write_records(folder, phase, "toy", records)
        write_records(folder, phase, "source", [one | {"score": None} for one in records])
    return folder


def rows_of(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.open(encoding="utf-8")))


def test_samples_that_turned_are_counted_by_type(tmp_path: Path) -> None:
    write_records(tmp_path, "before", "toy", BEFORE)
    write_records(tmp_path, "after", "toy", AFTER)
    pairs = pairs_of(*(tmp_path / "predictions" / phase / "toy.jsonl" for phase in ("before", "after")))
    assert by_type(pairs) == [
        ["all", 4, 2, 3, 2, 1],
        ["G1-6", 1, 1, 0, 0, 1],
        ["blue", 2, 1, 2, 1, 0],
        ["red", 2, 1, 1, 1, 1],
    ]


def test_the_report_of_a_run(tmp_path: Path) -> None:
    page = write_runs([run_of(tmp_path / "a")], tmp_path / "out", latex=True, trust=["tests"])
    text = page.read_text(encoding="utf-8")
    read = Page(text)
    assert (read.fetched, read.scripts) == ([], [])
    assert HOSTILE in read.text  # as it was written, and not as what it says
    assert text.count("data:image/jpeg;base64,") == 2 + 3  # of target and source, but for test-2
    assert "no picture" in read.text
    assert "picture not here" not in read.text
    assert "toy: learned (wrong → right), 2 of 2" in read.text
    assert "source: NLL of the true answer rose, 2 of 2" in read.text
    turned = rows_of(tmp_path / "out" / "every_sample_that_turned.csv")
    assert [(row["id"], row["right before"], row["right after"]) for row in turned] == [
        ("test-0", "1", "0"),
        ("test-1", "0", "1"),
        ("test-2", "0", "1"),
    ]
    assert turned[1]["before"] == HOSTILE
    scores = {row["set"]: row for row in rows_of(tmp_path / "out" / "target_and_sources.csv")}
    assert [float(scores["toy"][key]) for key in ("before", "after", "change")] == [10.0, 60.0, 50.0]
    tex = (tmp_path / "out" / "tables.tex").read_text(encoding="utf-8")
    assert r"toy & accuracy & 10.0 & 60.0 & +50.0 & 0.750 & 0.250 \\" in tex
    assert tex.count(r"\toprule") == tex.count(r"\bottomrule") > 3
    assert "| toy | accuracy | 10.0 | 60.0 | +50.0 |" in (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")


def test_runs_side_by_side(tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a"), run_of(tmp_path / "b", 70.0, [one | {"score": 1.0} for one in AFTER])]
    out = write_runs(runs, tmp_path / "out").parent
    scores = rows_of(out / "scores.csv")
    assert [(row["run"], float(row["toy"]), float(row["A^S"])) for row in scores] == [("a", 60, 30), ("b", 70, 30)]
    (difference,) = rows_of(out / "differences.csv")
    assert float(difference["toy"]) == pytest.approx(100 * ((1 - 0) + 0 + (1 - 0.9) + (1 - 0.5)) / 4)
    assert difference["source"] == ""
    (row,) = (row for row in rows_of(out / "otherwise.csv") if row["type"] == "all")
    assert [row[key] for key in ("right here", "right in first", "right here alone")] == ["4", "3", "1"]
    settings = rows_of(out / "settings.csv")
    assert settings == [{"setting": "model.adapter.lr", "a": "60.0", "b": "70.0"}]
    assert Page((out / "report.html").read_text(encoding="utf-8")).fetched == []


def test_an_answer_may_hold_other_ends_of_lines(tmp_path: Path) -> None:
    run = run_of(tmp_path / "a")
    file = run / "predictions" / "after" / "toy.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["prediction"] = "one\u2028two\x85three"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert [row["prediction"] for row in read_records(file).values()] == [row["prediction"] for row in rows]
    assert write_runs([run], tmp_path / "out").is_file()


def test_pictures_that_are_not_there_are_said_to_be(tmp_path: Path) -> None:
    text = write_runs([run_of(tmp_path / "a")], tmp_path / "out").read_text(encoding="utf-8")
    assert "picture not here" in text
    assert "add --trust tests" in Page(text).text
    (tmp_path / "data").rmdir()
    text = write_runs([tmp_path / "a"], tmp_path / "out", trust=["tests"]).read_text(encoding="utf-8")
    assert "Pictures that are not here: toy: there is no folder" in Page(text).text


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda run: run.rename(run.with_name("moved")), r"There is no folder .*/b "),
        (lambda run: (run / "summary.json").unlink(), r"no summary\.json .*config\.yaml.*has not finished"),
        (lambda run: (run / "summary.json").write_text('{"target": 1'), r"summary\.json is not what a run writes"),
        (lambda run: (run / "predictions/after/toy.jsonl").unlink(), r"after/toy\.jsonl is missing"),
        (lambda run: cut(run, 20), r"after/toy\.jsonl:4 is no whole record, so the file was cut off"),
        (lambda run: cut(run, 0, lines=1), r"has 4 samples and .*after/toy\.jsonl has 3; .*such as 'test-3'"),
        (
            lambda run: write_run(run, summary_of(3, {"source": 30.0}, name="vqa")),
            r"different targets \(.*/a: toy, .*/b: vqa\)",
        ),
    ],
)
def test_what_cannot_be_reported_is_named(harm: Any, message: str, tmp_path: Path) -> None:
    runs = [run_of(tmp_path / "a"), run_of(tmp_path / "b")]
    harm(runs[1])
    with pytest.raises(ReportError, match=message):
        write_runs(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def cut(run: Path, characters: int, lines: int = 0) -> None:
    file = run / "predictions" / "after" / "toy.jsonl"
    kept = file.read_text().splitlines(keepends=True)
    text = "".join(kept[: len(kept) - lines])
    file.write_text(text[: len(text) - characters])


def test_a_run_without_sources_and_validations(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", summary_of(60.0, {}))
    for phase in ("before", "after"):
        write_records(folder, phase, "toy", BEFORE)
    text = Page(write_runs([folder], tmp_path / "out").read_text(encoding="utf-8")).text
    assert "There were no validations" in text
    assert "toy: no sample was learned or forgotten." in text


def test_a_runs_own_page_never_fails_it(tmp_path: Path, files: list[Path]) -> None:
    callback = SummaryCallback("toy", ForgettingCallback())
    run = run_of(tmp_path / "a")
    samples = [Sample.single_turn(f"test-{i}", "q", "a", (files[i],)) for i in range(4)]
    trainer: Any = SimpleNamespace(
        datamodule=SimpleNamespace(sets={"test": [SimpleNamespace(name="toy", samples=samples)]})
    )
    assert callback._page(trainer, run) == f"Report: {run / 'report.html'}"
    assert "data:image/jpeg" in (run / "report.html").read_text(encoding="utf-8")
    cut(run, 20)
    assert callback._page(trainer, run).startswith(f"Report: {run / 'report.html'} was not written: ReportError: ")
    assert callback._page(SimpleNamespace(datamodule=None), run).startswith("Report: ")  # type: ignore[arg-type]
    run_of(run)
    files[0].with_name("broken.png").write_bytes(b"no picture")
    broken = [Sample.single_turn("test-0", "q", "a", (files[0].with_name("broken.png"),), origin="row 7")]
    text = write_own(run, samples_of({"toy": broken})).read_text(encoding="utf-8")
    assert "row 7: image" in Page(text).text


def test_the_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["report.py", str(run_of(tmp_path / "a")), "--trust", "tests"])
    runpy.run_path(str(REPOSITORY / "tools" / "report.py"), run_name="__main__")
    assert capsys.readouterr().out == f"Written: {tmp_path / 'a' / 'report' / 'report.html'}\n"
