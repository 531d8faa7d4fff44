"""The report of a study: tables against hand-computed numbers, marks, claims, and what is missing or of other code."""

import csv
import statistics
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_lit.metrics import tradeoff
from mllm_lit.reports import write_report
from mllm_lit.studies.results import Missing, Rate, Result, Results, Tried
from mllm_lit.studies.study import Study, read_study
from tests.reports.page import Page
from tests.reports.toy import record, summary_of, validation, write_records, write_run

TARGETS = {"full": [50.0, 52.0, 54.0], "spider": [49.5, 52.5, 53.0], "lora $<b>\\frac$": [20.0, 21.0, 23.0]}
SOURCES = {"full": [20.0, 22.0, 21.0], "spider": [60.0, 70.0, 50.0], "lora $<b>\\frac$": [80.0, 80.0, 81.0]}
FILE: dict[str, Any] = {
    "name": "methods",
    "question": "What keeps <i>most</i>?",
    "axes": {"method": {name: {"model.adapter.rank": i} for i, name in enumerate(TARGETS)}, "seed": [1, 2, 3]},
    "claims": [
        {
            "says": "SPIDER keeps more",
            "source": "2411.10928",
            "higher": {"method": "spider"},
            "lower": {"method": "full"},
        }
        | {"score": "A_S"},
    ],
    "paper": [{"title": "Table 2", "rows": {"full": {"H": 40.5}, "spider": {"H": "45 (7B)"}}}],
}


def study_of(folder: Path, **changes: Any) -> Study:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(FILE | changes, sort_keys=False))
    return read_study(path)


def results_of(seeds: int = 3) -> Results:
    cells = []
    for name in TARGETS:
        for place in range(seeds):
            target, source = TARGETS[name][place], SOURCES[name][place]
            during = [
                validation(2, 0.9, 1.0, 2.0),
                validation(4, 0.3, target - 1, source),
                validation(6, 0.5, 3.0, 4.0),
            ]
            labels = {"method": name, "seed": str(place + 1)}
            summary = summary_of(target, {"source": source}, 10.0 + place, place + 1, during)
            cells.append(Result(f"key-{name}-{place}", labels, summary, {"lr": 0.1, "rank": len(name)}, "old"))
    return Results("methods", cells)


def rows_of(file: Path) -> dict[str, dict[str, str]]:
    rows = list(csv.reader(file.open(encoding="utf-8")))
    return {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}


def test_the_table_is_the_one_that_a_hand_computes(tmp_path: Path) -> None:
    page = write_report(study_of(tmp_path), results_of(), tmp_path / "out", latex=True)
    rows = rows_of(tmp_path / "out" / "target_and_sources.csv")
    for name, row in rows.items():
        if name == "before training":
            assert [float(row[key]) for key in ("target", "source", "A^S")] == pytest.approx([11.0, 90.0, 90.0])
            continue
        pairs = list(zip(TARGETS[name], SOURCES[name], strict=True))
        for key, values in {
            "target": TARGETS[name],
            "source": SOURCES[name],
            "H": [tradeoff(t, [s])["H"] for t, s in pairs],
            "O": [(t + s) / 2 for t, s in pairs],
        }.items():
            found = [float(row[key + end]) for end in ("", " sd", " seeds")]
            assert found == pytest.approx([statistics.fmean(values), statistics.stdev(values), 3])
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    # Half of an interval is 2.48 standard deviations of the differences. Target: spider -0.3 ± 0.8, lora -30.7 ± 0.6;
    # source: spider -20.3 ± 10.5, full -59.3 ± 1.2.
    assert "| full | 3 | **52.0 ± 2.0** | 21.0 ± 1.0 |" in text
    assert "| spider | 3 | 51.7 ± 1.9 ≈ | 60.0 ± 10.0 ≈ |" in text
    assert "| lora $&lt;b>\\frac$ | 3 | 21.3 ± 1.5 | **80.3 ± 0.6** |" in text
    seeds = list(csv.DictReader((tmp_path / "out" / "seeds.csv").open(encoding="utf-8")))
    assert [float(row["target"]) for row in seeds] == [value for values in TARGETS.values() for value in values]
    read = Page(page.read_text(encoding="utf-8"))
    assert (read.fetched, read.scripts) == ([], [])
    for part in ("What keeps <i>most</i>?", "lora $<b>\\frac$", "45 (7B)", "9 of 9 cells are finished"):
        assert part in read.text


def test_verdicts_missing_cells_rates_and_other_code(tmp_path: Path) -> None:
    results = results_of()
    results.cells[4].code = "new"
    results.missing = [Missing({"method": "ia3", "seed": "1"}, "failed", "cells/<k>.log")]
    results.rates = [Rate({"method": "full"}, 0.01, {"0.001": 40.0, "0.01": 45.0})]
    scores = {"target": 45.0, "A_S": 90.0, "A_T": 45.0, "H": 60.0, "O": 67.5}
    tried = Tried("k", {"method": "full", "rate": "0.01"}, scores)
    results.tried = [tried, Tried("l", {"method": "lora", "rate": "0.01"}, {"target": 40.0})]  # no sources were scored
    rate = {"option": "lr", "rates": [0.1]}
    page = write_report(study_of(tmp_path, rate=rate), results, tmp_path / "out", code="newest")
    claim = rows_of(tmp_path / "out" / "claims.csv")["SPIDER keeps more"]
    assert (claim["seeds that show it"], claim["shows here"]) == ("3 of 3", "yes")
    assert float(claim["difference"]) == pytest.approx(statistics.fmean([40.0, 48.0, 29.0]))
    assert rows_of(tmp_path / "out" / "rates.csv")["full"]["chosen"] == "0.01"
    (row,) = csv.DictReader((tmp_path / "out" / "tried.csv").open(encoding="utf-8"))
    assert row.items() >= {"method": "full", "rate": "0.01", "target": "45.0", "A^S": "90.0", "O": "67.5"}.items()
    assert rows_of(tmp_path / "out" / "target_and_sources.csv")["full"]["rate"] == "0.1"
    assert rows_of(tmp_path / "out" / "missing.csv")["method ia3, seed 1"]["log"] == "cells/<k>.log"
    cells = list(csv.DictReader((tmp_path / "out" / "cells.csv").open(encoding="utf-8")))
    assert [row["code"] for row in cells][3:5] == [
        "other code than the present",
        "other code than most others and the present",
    ]
    assert "9 of 10 cells are finished" in Page(page.read_text(encoding="utf-8")).text


def test_tables_that_a_study_asks_for(tmp_path: Path) -> None:
    results = results_of()
    for cell in results.cells:
        cell.labels = {"task": "a", **cell.labels}
    more = [
        Result("k", {**c.labels, "task": "b"}, summary_of(c.summary["target"]["after"] / 2, {})) for c in results.cells
    ]
    results.cells[3].summary["scores"]["after"]["toy"]["nll"] = 0.1  # of spider; all others have 0.25
    results.cells += more[:8]  # the last seed of the last method is missing
    axes = {"task": {"a": {}, "b": {}}, **FILE["axes"]}
    tables = [
        {"score": "target", "columns": "task", "title": "By task"},
        {"score": "target", "columns": "seed"},
        {"score": "toy.nll", "columns": "task", "at": "least"},
        {"score": "target", "columns": "task", "at": "least+2"},
    ]
    asked = {
        "tables": tables,
        "correlations": [
            {"score": "target", "by": "A_S", "columns": "method", "title": "Together"},
            {"score": "target", "by": "kl_to_before", "columns": "task"},
        ],
        "spreads": [{"score": "target", "over": ["task", "seed"], "title": "Steady"}],
        "wins": [
            {"scores": ["target", "toy.nll"], "axis": "method", "over": ["full", "spider"], "title": "Wins"},
            {"scores": ["kl_to_before"], "axis": "method", "over": ["full"], "title": "None"},
        ],
    }
    page = write_report(study_of(tmp_path, axes=axes, claims=[], **asked), results, tmp_path / "out")
    together = rows_of(tmp_path / "out" / "together.csv")["spider"]
    assert float(together["over runs"]) == pytest.approx(-0.5), "of task a: 49.5, 52.5, 53.0 and 60, 70, 50"
    assert (together["runs"], together["over means of rows"]) == ("3", "")
    assert "There is no score 'kl_to_before'" in Page(page.read_text(encoding="utf-8")).text
    steady = rows_of(tmp_path / "out" / "steady.csv")["full"]
    assert [float(steady[key]) for key in ("values", "lowest", "highest", "range")] == [6, 25, 54, 29]
    won = rows_of(tmp_path / "out" / "wins.csv")
    told = {"target over full": "2 of 6", "toy.nll over full": "1 of 6", "target over spider": ""}
    assert won["spider"].items() >= told.items()
    assert (won["full"]["target over spider"], won["full"]["toy.nll over spider"]) == ("4 of 6", "0 of 6"), "no ties"
    assert won["lora $<b>\\frac$"]["target over spider"] == "0 of 5"
    assert "None: There is no score 'kl_to_before'" in Page(page.read_text(encoding="utf-8")).text
    row = rows_of(tmp_path / "out" / "by_task.csv")["lora $<b>\\frac$"]
    assert [float(row[key]) for key in ("a", "b", "mean")] == pytest.approx([64 / 3, 41 / 4, 1.5 * 41 / 4])
    assert [int(row[key]) for key in ("a seeds", "b seeds", "mean seeds")] == [3, 2, 2]
    by_seed = list(csv.DictReader((tmp_path / "out" / "target.csv").open(encoding="utf-8")))
    assert [(row["task"], row["method"], float(row["2"])) for row in by_seed[:2]] == [
        ("a", "full", 52.0),
        ("a", "spider", 52.5),
    ]
    nll = rows_of(tmp_path / "out" / "toy_nll_at_least.csv")["full"]
    assert (float(nll["a"]), nll.get("b")) == (0.3, None)
    assert "target, at least+2: There is no evaluation 'least+2'" in Page(page.read_text(encoding="utf-8")).text


def test_one_seed_is_compared_over_its_samples(tmp_path: Path) -> None:
    results = results_of(seeds=1)
    right = {
        "full": [1.0] * 40 + [0.0] * 10,
        "spider": [0.0] * 2 + [1.0] * 37 + [0.0] * 11,
        "lora $<b>\\frac$": [0.0] * 50,
    }
    for cell in results.cells:
        folder = write_run(tmp_path / cell.key, cell.summary)
        cell.folder = str(folder)
        answers = [record(str(i), score, image=[]) for i, score in enumerate(right[cell.labels["method"]])]
        for phase in ("before", "after"):
            write_records(folder, phase, "toy", answers)
    page = write_report(study_of(tmp_path), results, tmp_path / "out")
    found = rows_of(tmp_path / "out" / "target_and_sources_differences_to_the_best_row.csv")
    assert float(found["spider"]["target"]) == pytest.approx(-6.0)
    assert int(found["spider"]["target pairs"]) == 50
    assert (found["spider"]["A^S"], found["spider"]["A^S low"]) == (f"{60.0 - 80.0}", "")
    text = (tmp_path / "out" / "tables.md").read_text(encoding="utf-8")
    assert "| lora $&lt;b>\\frac$ | 1 | 20.0 | **80.0** |" in text
    assert "source.jsonl is missing" in Page(page.read_text(encoding="utf-8")).text


def test_a_merge_shows_its_own_answers(tmp_path: Path) -> None:
    axes = {"method": {"full": {}, "half way": {"merge": "wise_ft", "of": "full", "point": "alpha 0.50"}}}
    sources = {"source": 30.0}
    folder = write_run(tmp_path / "cells" / "k", summary_of(50.0, sources))
    answers = {"before": "of the backbone", "after": "said by the run"}
    for phase, said in answers.items():
        for name in ("toy", "source"):
            write_records(folder, phase, name, [record("a", float(phase == "after"), image=[], prediction=said)])
            merged = record("a", 1.0, image=[], prediction="of the merge")
            write_records(folder / "merges" / "wise_ft", "alpha-0.50", name, [merged])
    points = [{"label": f"alpha {a:.2f}", "tradeoff": tradeoff(50 * a, [90 - 40 * a])} for a in (0.0, 0.5, 1.0)]
    summary = summary_of(50.0, sources) | {"points": points, "tradeoff": points[1]["tradeoff"]}
    results = Results("merges", [Result("m", {"method": "half way"}, summary, folder=str(folder))])
    page = write_report(study_of(tmp_path, axes=axes, claims=[]), results, tmp_path / "out")
    text = Page(page.read_text(encoding="utf-8")).text
    assert "of the merge" in text
    assert "said by the run" not in text
    assert "half way, swept" in text


def test_a_study_of_nothing_but_seeds_and_one_without_results(tmp_path: Path) -> None:
    results = results_of()
    results.cells = results.cells[:3]
    for cell in results.cells:
        del cell.labels["method"]
    write_report(study_of(tmp_path, axes={"seed": [1, 2, 3]}, claims=[]), results, tmp_path / "out")
    row = rows_of(tmp_path / "out" / "target_and_sources.csv")["methods"]
    assert (float(row["target"]), row["seeds"]) == (52.0, "3")
    page = write_report(study_of(tmp_path), Results("methods"), tmp_path / "empty")
    assert "Nothing was run yet." in Page(page.read_text(encoding="utf-8")).text
    chosen = Results("methods", tried=[Tried("k", {"method": "full", "rate": "0.01"}, {"target": 40.0})])
    page = write_report(study_of(tmp_path), chosen, tmp_path / "chosen")
    assert "Only runs that choose rates are finished." in Page(page.read_text(encoding="utf-8")).text


def test_a_sequence_has_its_metrics_and_heat_map(tmp_path: Path) -> None:
    """Two stages and two seeds; strict, relaxed and NLL of the table a(t, i), by hand."""
    study = study_of(
        tmp_path, axes={"method": {"a": {}, "b": {}}, "seed": [1, 2]}, claims=[], paper=[], stages={"x": {}, "y": {}}
    )
    strict = {("x", "x"): 80.0, ("x", "y"): 10.0, ("y", "x"): 60.0, ("y", "y"): 90.0}
    cells = []
    for seed in (1, 2):
        for stage, other in (("x", "y"), ("y", "x")):
            summary = summary_of(strict[stage, stage] + seed, {"source": 50.0 + seed}, seed=seed)
            row = {"metric": "accuracy", "before": 0.0, "after": strict[stage, other] + seed, "forgetting": 0.0}
            summary["others"] = {other: row | {"nll_before": 1.0, "nll_after": 0.5}}
            after = summary["scores"]["after"]
            after["toy"]["accuracy_relaxed"] = strict[stage, stage] + 5 + seed
            after[other] = {"accuracy": row["after"], "accuracy_relaxed": row["after"] + 15, "nll": 0.5}
            labels = {"method": "a", "seed": str(seed), "stage": stage}
            cells.append(Result(f"{stage}{seed}", labels, summary))
    unfinished = [Result("z", {"method": "b", "seed": "1", "stage": "x"}, summary_of(1.0, {"source": 1.0}))]
    page = write_report(study, Results("methods", [*cells, *unfinished]), tmp_path / "out")
    found = list(csv.DictReader((tmp_path / "out" / "sequence.csv").open(encoding="utf-8")))
    assert [(row["sequence"], row["of"], row["seeds"]) for row in found] == [
        ("a", "score", "2"),
        ("a", "relaxed", "2"),
        ("a", "nll", "2"),
    ]
    # MFT (80 + 90) / 2, MFN (60 + 90) / 2, MAA (80 + 75) / 2, BWT 60 - 80; and 1.5 for the seeds, but for BWT.
    assert [float(found[0][name]) for name in ("MFT", "MFN", "MAA", "BWT")] == [86.5, 76.5, 79.0, -20.0]
    # Relaxed: 85, 75 and 95: (85 + 95) / 2, (75 + 95) / 2, (85 + 85) / 2, 75 - 85.
    assert [float(found[1][name]) for name in ("MFT", "MFN", "MAA", "BWT")] == [91.5, 86.5, 86.5, -10.0]
    assert [float(found[2][name]) for name in ("MFT", "MFN", "BWT")] == [0.25, 0.375, 0.25]
    assert [float(found[0][f"A^S after {stage}"]) for stage in ("x", "y")] == [51.5, 51.5]
    tasks = list(csv.DictReader((tmp_path / "out" / "tasks.csv").open(encoding="utf-8")))
    assert [(row["after"], float(row["x"]), float(row["y"])) for row in tasks] == [("x", 81.5, 11.5), ("y", 61.5, 91.5)]
    assert "<svg" in page.read_text(encoding="utf-8")
    assert Page(page.read_text(encoding="utf-8")).fetched == []
