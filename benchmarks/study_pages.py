"""Fills the tables of docs/studies/*.md from the kept results of studies: python benchmarks/study_pages.py

Between ``<!-- STUDY.yaml: begin -->`` and ``<!-- STUDY.yaml: end -->`` a page has the tables of a report: what
its claims came to, scores, stages, cost and learning rates. The file is named as below ``configs``.
"""

import re
from pathlib import Path

from mllm_lit.reports.page import markdown
from mllm_lit.reports.study import page_of
from mllm_lit.reports.view import View
from mllm_lit.studies import read_results, read_study

REPOSITORY = Path(__file__).parents[1]
PAGES = REPOSITORY / "docs" / "studies"
RESULTS = REPOSITORY / "benchmarks" / "results" / "studies"
SECTIONS = ("Claims", "Scores", "Stages", "Cost", "Learning rates")
LONG = ("differences", "tasks", "tried")
"""First or last words of tables that are in the report alone."""
MARKED = re.compile(r"(<!-- ([\w/]+\.yaml): begin -->\n).*?(<!-- \2: end -->)", re.S)


def tables(name: str) -> str:
    """The tables of a study's report as Markdown, below what it consists of.

    Raises:
        FileNotFoundError: No results of it are kept.
    """
    study = read_study(REPOSITORY / "configs" / name)
    file = RESULTS / f"{study.file.name}.json"
    results = read_results(file)
    if results is None:
        raise FileNotFoundError(f"{file}; run: python tools/study.py run configs/{name} --jobs 2")
    page = page_of(View(study, results))
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
