"""Fills the tables of docs/studies/*.md from the kept results of studies: python benchmarks/study_pages.py

Between ``<!-- STUDY.yaml: begin -->`` and ``<!-- STUDY.yaml: end -->`` a page has the tables of a report: what
its claims came to, scores, stages, cost and learning rates. Between ``<!-- STUDY.yaml with OVERLAY.yaml: begin -->``
and its end it has both choices of rates side by side, and the overlay's pairs of runs. Files are named as below
``configs``.
"""

import re
from pathlib import Path

from mllm_lit.reports.page import Score, Table, markdown
from mllm_lit.reports.study import page_of
from mllm_lit.reports.study_scores import wins
from mllm_lit.reports.view import View
from mllm_lit.studies import read_results, read_study

REPOSITORY = Path(__file__).parents[1]
PAGES = REPOSITORY / "docs" / "studies"
RESULTS = REPOSITORY / "benchmarks" / "results" / "studies"
SECTIONS = ("Claims", "Scores", "Stages", "Cost", "Learning rates")
LONG = ("differences", "tasks", "tried")
"""First or last words of tables that are in the report alone."""
MARKED = re.compile(r"(<!-- ([\w/]+\.yaml(?: with [\w/]+\.yaml)?): begin -->\n).*?(<!-- \2: end -->)", re.S)
SHOWN = ("H", "O")
"""Scores of both choices of rates."""


def view_of(name: str, overlay: str = "") -> View:
    """A study with its results.

    Raises:
        FileNotFoundError: No results of it are kept.
    """
    study = read_study(REPOSITORY / "configs" / name, [REPOSITORY / "configs" / overlay] if overlay else [])
    file = RESULTS / f"{study.file.name}.json"
    results = read_results(file)
    if results is None:
        laid = f" --with configs/{overlay}" if overlay else ""
        raise FileNotFoundError(f"{file}; run: python tools/study.py run configs/{name}{laid} --jobs 2")
    return View(study, results)


def choices(views: list[View]) -> Table:
    """A row for every combination: for each choice of rates the rate, and what was reached with it."""
    axes = views[0].study.rows
    rates = [{tuple(one.labels[axis] for axis in axes): one.chosen for one in view.results.rates} for view in views]
    values = [{score: view.values(score) for score in SHOWN} for view in views]
    head = [*axes]
    for view in views:
        chosen = view.study.file.rate
        by = "" if chosen is None else f" by {chosen.score}"
        head += [f"rate{by}", *(f"{score}{by}" for score in SHOWN)]
    rows = []
    for row in dict.fromkeys(row for table in values for row in table[SHOWN[0]]):
        told: list[object] = [*row]
        for chosen_rates, table in zip(rates, values, strict=True):
            found = [table[score].get(row) for score in SHOWN]
            rate = chosen_rates.get(row)
            told += [None if rate is None else f"{rate:g}", *(Score([*own.values()]) if own else None for own in found)]
        rows.append(told)
    return Table("Both choices of rates", head, rows)


def tables(name: str) -> str:
    """The tables of a study's report as Markdown, below what it consists of.

    Raises:
        FileNotFoundError: No results of it are kept.
    """
    name, _, overlay = name.partition(" with ")
    if overlay:
        views = [view_of(name), view_of(name, overlay)]
        facts = page_of(views[1]).facts[0]
        counts = (wins(views[1], one) for one in views[1].study.file.wins)
        shown = [choices(views), *(one for one in counts if isinstance(one, Table))]
        return "\n\n".join([facts, *map(markdown, shown)]) + "\n\n"
    page = page_of(view_of(name))
    page.sections = [section for section in page.sections if section.title in SECTIONS]
    shown = [table for table in page.tables() if not table.long and not any(word in table.name for word in LONG)]
    facts = f"{page.facts[0]} {page.facts[1]}"
    return "\n\n".join([facts, *map(markdown, shown)]) + "\n\n"


def filled(text: str) -> str:
    """A page with the tables of the results that are kept."""
    return MARKED.sub(lambda found: f"{found[1]}{tables(found[2])}{found[3]}", text)


def main() -> None:
    """Write all pages."""
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        page.write_text(filled(text), encoding="utf-8")


if __name__ == "__main__":
    main()
