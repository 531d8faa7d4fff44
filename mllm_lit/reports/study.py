"""The report of a study: what its cells have found, what they cost, and what each was made from."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.errors import UserError
from mllm_lit.reports.page import Block, Details, Page, Score, Section, Table, Text
from mllm_lit.reports.runs import COST, HEADINGS, cost_row, differing, predictions, read_run
from mllm_lit.reports.scores import SEED, scores_of, seed_of
from mllm_lit.reports.study_scores import claims, stages, steps, tables, trade_off
from mllm_lit.reports.view import View, after_of

if TYPE_CHECKING:
    from mllm_lit.studies.results import Results
    from mllm_lit.studies.study import Study

SHOWN = 3
"""Predictions of each set and row that are shown as learned, and as forgotten."""


def write_report(
    study: "Study",
    results: "Results",
    folder: Path,
    latex: bool = False,
    trust: Sequence[str] = (),
    code: str | None = None,
) -> Path:
    """Write the report of a study: ``report.html``, ``tables.md``, a CSV file for each table, ``tables.tex``.

    Args:
        study: The study.
        results: What its cells have found.
        folder: Where to; made if it is missing.
        latex: Tables as LaTeX, too.
        trust: Modules, beside this package, whose classes the runs' configurations may name.
        code: A digest of the present code; cells of other code are marked.

    Returns:
        The page.
    """
    return page_of(View(study, results, trust, code)).write(folder, latex)


def page_of(view: View) -> Page:
    """What there is to say of a study."""
    done, missing = len(view.results.cells), len(view.results.missing)
    seeds = sorted({seed_of(cell) for cell in view.results.cells}, key=lambda seed: (len(seed), seed))
    facts = [f"{done} of {done + missing} cells are finished; seeds: {', '.join(seeds) or 'none'}."]
    commits = sorted({str(cell.summary.get("commit"))[:12] for cell in view.results.cells})
    nothing = "Only runs that choose rates are finished." if view.results.tried else "Nothing was run yet."
    facts.append(f"Commits: {', '.join(commits)}." if commits else nothing)
    page = Page(view.study.file.name, view.study.file.question, facts)
    for title, make in SECTIONS.items():
        if blocks := make(view):
            page.sections.append(Section(title, blocks))
    return page


def rates(view: View) -> list[Block]:
    """Rates that were tried, which was chosen, and what each scored on target and sources."""
    found = view.results.rates
    axes = list(dict.fromkeys(axis for rate in found for axis in rate.labels))
    tried = sorted({value for rate in found for value in rate.tried}, key=float)
    rows = [
        [*(rate.labels.get(axis, "") for axis in axes), f"{rate.chosen:g}"]
        + [Score([rate.tried[value]]) if value in rate.tried else None for value in tried]
        for rate in found
    ]
    score = view.study.file.rate.score if view.study.file.rate else "target"
    note = f"{HEADINGS.get(score, score)} on the validation split, one run a rate; of equal ones the smallest is taken."
    tables: list[Block] = [Table("Learning rates", [*axes, "chosen", *tried], rows, note, "rates")] if found else []
    both = [one for one in view.results.tried if "O" in one.scores]  # sources were scored, too
    axes = list(dict.fromkeys(axis for one in both for axis in one.labels))
    names = ("target", "A_S", "H", "O")
    told = [
        [*(one.labels.get(axis, "") for axis in axes), *(Score([one.scores[name]]) for name in names)] for one in both
    ]
    head = [*axes, *(HEADINGS.get(name, name) for name in names)]
    note = "One run a rate, on the sets that rates are chosen on: a hint of what a rate does to the sources."
    title = "What each rate scored"
    return tables + ([Details(title, [Table(title, head, told, note, "tried")])] if both else [])


def costs(view: View) -> list[Block]:
    """Means over the seeds of a row."""
    rows = [[*view.labels(row), *cost_row([one.summary for one in cells.values()])] for row, cells in view.rows.items()]
    note = "A merge has the cost of the run that it merges."
    return [Table("Cost of training, evaluation left out", [*view.axes, *COST], rows, note, "cost")] if rows else []


def cells(view: View) -> list[Block]:
    """Key, code and settings of every cell."""
    if not view.results.cells:
        return []
    known = Counter(cell.code for cell in view.results.cells if cell.code)
    usual = known.most_common(1)[0][0] if known else None
    differ, same = differing([cell.settings for cell in view.results.cells])
    rows, own, raw = [], [], []
    scores = list(dict.fromkeys(name for cell in view.results.cells for name in scores_of(cell.summary)))
    for cell in view.results.cells:
        codes = {"most others": usual, "the present": view.code}
        other = [whose for whose, code in codes.items() if code and cell.code and cell.code != code]
        mark = f"other code than {' and '.join(other)}" if other else "" if cell.code else "not known"
        labels = [*view.labels(view.row(cell.labels)), seed_of(cell)]
        precision = cell.summary.get("precision", {}).get("used", "")
        rows.append([*labels, cell.key, str(cell.summary.get("commit") or "")[:12], mark, precision])
        given = [[name, str(cell.settings.get(name, ""))] for name in differ]
        title = f"{', '.join(labels)}: {cell.key}"
        own.append(Details(title, [Table("Settings of its own", ("setting", "value"), given)]))
        found = scores_of(cell.summary)
        raw.append([*labels, cell.key, *(found.get(name) for name in scores)])
    head = [*view.axes, SEED, "key"]
    return [
        Details(f"{len(rows)} cells", [Table("Cells", [*head, "commit", "code", "precision"], rows, name="cells")]),
        Details("Scores of every cell", [Table("Scores of every cell", [*head, *scores], raw, name="seeds")]),
        Details(f"{same.title} cells", [same]),
        Details(f"{len(differ)} settings in which cells differ", own),
    ]


def missing(view: View) -> list[Block]:
    """Cells that are not finished, and where to look."""
    rows: list[list[Any]] = []
    for one in view.results.missing:
        rows.append([", ".join(f"{axis} {label}" for axis, label in one.labels.items()), one.state, one.log])
    return [Table("Cells that are not finished", ("cell", "state", "log"), rows, name="missing")] if rows else []


def answers(view: View) -> list[Block]:
    """Predictions of one seed of each row whose run directory is here."""
    blocks: list[Block] = []
    for row, cells_of_row in view.rows.items():
        found = next(((seed, cell) for seed, cell in cells_of_row.items() if cell.folder), None)
        if found is None:
            continue
        seed, cell = found
        try:
            run = read_run(Path(str(cell.folder)), view.name(row), view.trust)
            run.after = after_of(view.study, cell)
            blocks.append(Details(f"{view.name(row)}, seed {seed}", predictions(run, SHOWN)))
        except UserError as error:
            blocks.append(Text(f"{view.name(row)}, seed {seed}: {error}", warning=True))
    return blocks


SECTIONS: dict[str, Callable[[View], list[Block]]] = {
    "Claims": claims,
    "Scores": tables,
    "Stages": stages,
    "Trade-off": trade_off,
    "During training": steps,
    "Cost": costs,
    "Learning rates": rates,
    "Predictions": answers,
    "Not finished": missing,
    "Cells": cells,
}
"""Title -> what makes its blocks; a section without blocks is left out."""
