"""The README and the docs name files that are there, and figures that were measured."""

import json
import re
from pathlib import Path
from statistics import fmean

import pytest

from mllm_lit.reports.scores import mean_sd, score_of
from mllm_lit.studies import read_results
from tests.conftest import REPOSITORY

PAGES = [*sorted(REPOSITORY.glob("*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
RESULTS = REPOSITORY / "benchmarks" / "results" / "studies"
NAMED = re.compile(r"(?<![\w/.-])(?:configs|tools|benchmarks|tests|docs)/[\w./-]*\w\.(?:yaml|py|json|md)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # docs/write_a_rule.md and docs/tasks.md show names that a reader is to make.
    named = {name for name in NAMED.findall(text) if not re.search(r"myset|configs/X|NAME", name)}
    assert not {name for name in named if not (REPOSITORY / name).exists()}
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    assert not [link for link in links if not (page.parent / link).exists()]


def test_the_readme_states_the_measured_tradeoffs() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")

    def scores(study: str, **labels: str) -> dict[str, tuple[float, float | None]]:
        results = read_results(RESULTS / f"{study}.json")
        assert results is not None
        found = [cell.summary for cell in results.cells if labels.items() <= cell.labels.items()]
        columns = ("target", "captions", "vqa", "gqa", "A_S", "A_T", "H", "O")
        return {column: mean_sd([score_of(summary, column) for summary in found]) for column in columns}

    for name in ("ewc", "full", "lora", "spider", "magnitude_mask", "dowser", "wise_ft", "dare"):
        found = scores("spider_methods", target="scienceqa", method=name)
        cells = ["{:.1f} ± {:.1f}".format(*pair) for pair in found.values()]
        line = next(line for line in text.splitlines() if line.startswith(f"| {name} "))
        assert [cell.strip() for cell in line.split("|")[4:-1]] == cells
    at_5e_4 = scores("spider_defaults", method="full")["A_S"][0]
    assert f"forgets far more (A^S {at_5e_4:.1f})" in " ".join(text.split())
    assert scores("spider_methods", target="scienceqa", method="spider")["A_S"][0] > at_5e_4


def test_the_readme_states_the_spread_of_the_main_job() -> None:
    text = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    results = read_results(RESULTS / "spider_defaults.json")
    assert results is not None
    found = {cell.labels["seed"]: cell.summary for cell in results.cells if cell.labels["method"] == "lora"}
    assert list(found) == ["21", "42", "63"]
    captions, target = ([f"{score_of(run, name):.1f}" for run in found.values()] for name in ("captions", "target"))
    assert "ends with {}, {} and {} of captions".format(*captions) in text
    assert "with {}, {} and {} of the target".format(*target) in text
    job = json.loads((REPOSITORY / "benchmarks" / "results" / "main_job.json").read_text(encoding="utf-8"))
    assert job["seed"] == 42
    assert f"has {score_of(job, 'captions'):.1f} and {score_of(job, 'target'):.1f}" in text


def test_the_readme_shows_the_table_of_the_main_job() -> None:
    """As the first command printed it, but for trailing spaces."""
    from io import StringIO

    from rich.console import Console

    from mllm_lit.summary import table

    summary = json.loads((REPOSITORY / "benchmarks" / "results" / "main_job.json").read_text(encoding="utf-8"))
    out = StringIO()
    Console(file=out, width=80).print(table(summary))
    shown = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert "\n".join(line.rstrip() for line in out.getvalue().splitlines()).strip() in shown


def test_the_docs_show_what_was_measured_of_evaluation() -> None:
    text = (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "evaluation.json").read_text(encoding="utf-8"))
    for tokens in (16, 256, 576):
        cells = [results["135 M"][f"{tokens} tokens, {each} a picture"] for each in (1, 5, 30)]
        row = " | ".join(f"{cell['over whole rows']:.1f} / {cell['over one by one']:.1f}" for cell in cells)
        assert f"| {tokens} | {row} |" in text


def test_the_tutorial_shows_what_its_two_runs_reached() -> None:
    text = (REPOSITORY / "docs" / "build_your_own.md").read_text(encoding="utf-8")
    results = REPOSITORY / "benchmarks" / "results"
    first, second = (json.loads((results / f"smollm2_{run}.json").read_text()) for run in ("pretrain", "instruct"))
    rows = [(first["target"], ""), (first["target"], "nll_"), (second["target"], "")]
    rows += [(second["sources"][name], "") for name in ("captions", "vqa", "gqa", "questions")]
    rows.append((second["sources"]["text"], "nll_"))
    for row, kind in rows:
        before, after = (f"{row[kind + end]:.{2 if kind else 1}f}" for end in ("before", "after"))
        assert f"| {before} | {after} |" in text
    for run in (first, second):
        cost = run["cost"]
        assert f"{cost['steps']:,} steps in {cost['train_seconds']:,.0f} s" in text
        assert f"{cost['tokens_per_second']:.0f} tokens a second" in text
        assert f" {cost['peak_memory_bytes'] / 2**30:.1f} GiB" in text
    asked = json.loads((results / "letters.json").read_text())["models"]
    told = text + (REPOSITORY / "docs" / "studies" / "smollm2.md").read_text(encoding="utf-8")
    for model, pages in (("embedded", 2), ("embedded_after_exercises", 1), ("smollm2_llava", 2)):
        shares = [asked[model][f"letter, {choices} choices"]["right"] for choices in (2, 3, 4, 5)]
        assert told.count(f" | {' | '.join(f'{share:.1f}' for share in shares)} |") == pages, model
    shipped = REPOSITORY / "mllm_lit" / "backbones" / "smollm2_trained"
    assert f"{sum(file.stat().st_size for file in shipped.iterdir()) / 1e6:.1f} MB" in text


def test_the_tiers_are_compared_by_what_the_study_found() -> None:
    text = (REPOSITORY / "docs" / "embedded.md").read_text(encoding="utf-8")
    cells = json.loads((REPOSITORY / "benchmarks/results/studies/smollm2_letters.json").read_text())["cells"]
    own = {cell["labels"]["backbone"]: cell["summary"] for cell in cells if cell["labels"]["answer"] == "letter"}
    tiers = [own[name] for name in ("embedded", "smollm2")]
    assert "| " + " | ".join(f"{one['cost']['train_seconds']:.0f} s" for one in tiers) + " |" in text
    scores = [f"{one['target']['before']:.1f} / {one['target']['after']:.1f}" for one in tiers]
    assert f"| {' | '.join(scores)} |" in text
    reached = json.loads((REPOSITORY / "benchmarks/results/smollm2_instruct.json").read_text())["sources"]
    told = "easy-VQA {vqa:.1f}, GQA format {gqa:.1f}".format(**{name: row["after"] for name, row in reached.items()})
    assert told in text


@pytest.mark.parametrize("page", sorted((REPOSITORY / "docs" / "studies").glob("*.md")), ids=lambda page: page.stem)
def test_pages_of_studies_have_the_tables_of_their_results(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from study_pages import filled

    text = page.read_text(encoding="utf-8")
    assert filled(text) == text


@pytest.mark.parametrize(
    ("choice", "counted"), [("", "It is above in"), ("_by_o", "this way either**: it is above in")]
)
def test_the_verdict_on_the_goal_is_that_of_the_runs(choice: str, counted: str) -> None:
    kept = json.loads((REPOSITORY / f"benchmarks/results/studies/objectives_methods{choice}.json").read_text())
    found: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for cell in kept["cells"]:
        labels = cell["labels"]
        found.setdefault((labels["target"], labels["method"]), {})[labels["seed"]] = cell["summary"]["tradeoff"]

    def told(target: str, score: str) -> list[str]:
        methods = ("budget_wide", "full", "spider", "dowser")
        return [f"{fmean(run[score] for run in found[target, method].values()):.1f}" for method in methods]

    text = " ".join((REPOSITORY / "docs/studies/objectives.md").read_text(encoding="utf-8").split())
    if not choice:
        assert "{} on ScienceQA (full tuning {}, SPIDER {}, Model-Dowser {})".format(*told("scienceqa", "H")) in text
        assert "and {} on IconQA ({}, {}, {}). Its O is".format(*told("iconqa_blank", "H")) in text
        both = "{} ({}, {}, {}) and {} ({}, {}, {}).".format(*told("scienceqa", "O"), *told("iconqa_blank", "O"))
        assert f"Its O is {both}" in text
    pairs = [
        own[score] > found[target, rival][seed][score]
        for (target, method), runs in found.items()
        for rival in ("full", "spider", "dowser")
        for seed, own in runs.items()
        for score in ("H", "O")
        if method == "budget_wide"
    ]
    assert f"{counted} {sum(pairs)} of the {len(pairs)} pairs" in text


def test_the_page_of_performance_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from performance import PAGE, page

    assert PAGE.read_text(encoding="utf-8") == page(REPOSITORY / "benchmarks" / "results")
