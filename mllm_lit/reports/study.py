"""The report of a study: what its cells have found, as tables and plots, and what each was made from."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mllm_lit.errors import UserError
from mllm_lit.reports.page import Block, Details, Figures, Gap, Page, Score, Section, Table, Text, slug, svg
from mllm_lit.reports.predictions import over_scored, pairs_of
from mllm_lit.reports.runs import COST, HEADINGS, cost_row, differing, during, predictions, read_run
from mllm_lit.reports.scores import (
    BEST,
    NEAR,
    SEED,
    Difference,
    ReportError,
    best_of,
    lower_is_better,
    over_seeds,
    pareto,
    scores_of,
    seed_of,
    sets_of,
    verdicts,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mllm_lit.studies.results import Result, Results
    from mllm_lit.studies.study import Shown, Study

Row = tuple[str, ...]
"""Labels of the axes that tell rows apart."""
Values = Mapping[str, float]
"""Seed -> score."""

SHOWN = 3
"""Predictions of each set and row that are shown as learned, and as forgotten."""
TRADEOFF = ("A_S", "A_T", "H", "O")
NOISE = (
    "Means ± standard deviations over seeds. The best of a column is bold; ≈ marks rows within noise of it: the 95 % "
    "interval of their paired differences holds 0. Pairs are the seeds (Student's interval over them) or, of a single "
    "seed whose answers are here, its samples (bootstrap; the noise of the test set alone). No correction is made for "
    "the number of rows."
)


@dataclass
class View:
    """A study and its results, sorted by rows.

    Attributes:
        study: What was asked.
        results: What was found.
        trust: Modules, beside this package, whose classes the runs' configurations may name.
        code: A digest of the present code, ``None`` where that is not to be compared.
    """

    study: "Study"
    results: "Results"
    trust: Sequence[str] = ()
    code: str | None = None

    @cached_property
    def rows(self) -> "dict[Row, dict[str, Result]]":
        """Row -> seed -> cell, in the order of the results."""
        found: dict[Row, dict[str, Result]] = {}
        for cell in self.results.cells:
            found.setdefault(self.row(cell.labels), {})[seed_of(cell)] = cell
        return found

    def row(self, labels: Mapping[str, str]) -> Row:
        """The row of a cell's labels."""
        return tuple(labels.get(axis, "") for axis in self.study.rows)

    @cached_property
    def axes(self) -> list[str]:
        """Axes along which the rows differ, at least one."""
        differ = [axis for i, axis in enumerate(self.study.rows) if len({row[i] for row in self.rows}) > 1]
        return differ or list(self.study.rows[:1])

    def labels(self, row: Row) -> list[str]:
        """Of the axes along which rows differ."""
        return [label for axis, label in zip(self.study.rows, row, strict=True) if axis in self.axes]

    def name(self, row: Row) -> str:
        """Of a row, in plots."""
        return " · ".join(self.labels(row)) or self.results.study

    def values(self, score: str, at: str = "end") -> dict[Row, dict[str, float]]:
        """Row -> seed -> score, where there is one.

        Raises:
            ReportError: No cell has it.
        """
        found: dict[Row, dict[str, float]] = {}
        why = None
        for row, cells in self.rows.items():
            for seed, cell in cells.items():
                try:
                    scores = scores_of(cell.summary, at)
                except ReportError as error:
                    why = why or str(error)
                    continue
                if score in scores:
                    found.setdefault(row, {})[seed] = scores[score]
                else:
                    why = why or f"There is no score {score!r}; there are {', '.join(scores)}."
        if not found:
            raise ReportError(why or "No cell is finished.")
        return found

    def lower(self, score: str) -> bool:
        """Whether small scores are good."""
        return lower_is_better(score, [cell.summary for cell in self.results.cells])


@dataclass
class Column:
    """Of a table of scores.

    Attributes:
        score: Its name.
        values: Row -> seed -> score.
        cells: Row -> seed -> cell, where its score is the one after training.
    """

    score: str
    values: dict[Row, dict[str, float]]
    cells: "dict[Row, dict[str, Result]]"

    def gap(self, study: "Study", one: Row, other: Row) -> Difference | None:
        """The paired difference of two rows, over seeds or, of one seed, over samples."""
        difference = over_seeds(self.values[one], self.values[other])
        if difference is None or difference.pairs > 1 or not self.cells:
            return difference
        seed = next(seed for seed in self.values[one] if seed in self.values[other])
        return over_answers(study, self.score, self.cells[one][seed], self.cells[other][seed]) or difference


def over_answers(study: "Study", score: str, one: "Result", other: "Result") -> Difference | None:
    """The difference of two cells on a set, over its samples; ``None`` where they have no scores or are not here."""
    name = one.summary["target"]["name"] if score in ("target", "A_T") else score
    if name not in sets_of(one.summary) or not (one.folder and other.folder) or lower_is_better(name, [one.summary]):
        return None
    try:
        pairs = pairs_of(*(after_of(study, cell) / f"{name}.jsonl" for cell in (one, other)))
    except ReportError:
        return None
    return over_scored(pairs)


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
    facts.append(f"Commits: {', '.join(commits)}." if commits else "Nothing was run yet.")
    page = Page(view.study.file.name, view.study.file.question, facts)
    for title, make in SECTIONS.items():
        if blocks := make(view):
            page.sections.append(Section(title, blocks))
    return page


# ---- scores -------------------------------------------------------------------------------------------------------


def claims(view: View) -> list[Block]:
    """Each claim, with the difference seed by seed and a verdict."""
    rows: list[list[Any]] = []
    for claim in view.study.file.claims:
        said = [claim.says, claim.source, HEADINGS.get(claim.score, claim.score)]
        try:
            found = verdicts(claim, view.results.cells)
        except ReportError as error:
            rows.append([*said, "", None, "", str(error)])
            continue
        for one in found:
            where = ", ".join(f"{axis} {label}" for axis, label in one.where.items() if axis in view.axes)
            rows.append([*said, where, Gap(one.difference), f"{one.shows} of {one.difference.pairs}", one.word])
        if not found:
            rows.append([*said, "", None, "", "not run yet"])
    head = ("claim", "made in", "score", "where", "difference", "seeds that show it", "shows here")
    note = "Differences are paired by seed, with Student's 95 % interval; yes or no where all seeds agree."
    return [Table("Claims", head, rows, note, "claims")] if rows else []


def tables(view: View) -> list[Block]:
    """Those that the study asks for, else one of target, sources and trade-off; the paper's figures beside."""
    blocks: list[Block] = []
    if view.results.cells:
        for shown_table in view.study.file.tables:
            blocks += asked(view, shown_table)
        if not view.study.file.tables:
            blocks += every_score(view)
        blocks.append(Text(NOISE))
    for paper in view.study.file.paper:
        head = list(dict.fromkeys(column for row in paper.rows.values() for column in row))
        rows = [[name, *(row.get(column) for column in head)] for name, row in paper.rows.items()]
        blocks.append(Table(paper.title, ["", *head], rows, "Figures of the paper.", f"paper_{slug(paper.title)}"))
    return blocks


def every_score(view: View) -> list[Block]:
    """Target, sources, A^S, A^T, H and O of every row."""
    summaries = [cell.summary for cell in view.results.cells]
    targets = {summary["target"]["name"] for summary in summaries}
    sets = dict.fromkeys(name for summary in summaries for name in sets_of(summary) if {name} != targets)
    columns = {}
    for score in ("target", *sets, *TRADEOFF):
        with suppress(ReportError):  # a study without sources has no trade-off
            columns[HEADINGS.get(score, score)] = Column(score, view.values(score), view.rows)
    choice, lead = view.study.file.rate, dict[Row, Sequence[Any]]()
    for row, cells in view.rows.items():
        lead[row] = [] if choice is None else [str(next(iter(cells.values())).settings.get(choice.option, ""))]
    heads = [] if choice is None else ["rate"]
    first = ["before training", *[""] * (len(view.axes) + len(heads) - 1), *before(view, columns)]
    alike = len(targets) == 1 and not view.study.file.stages
    return compare(view, "Target and sources", columns, lead, heads, [first] if alike else [])


def before(view: View, columns: Mapping[str, Column]) -> list[Any]:
    """The scores before training, of the row with the most seeds: a mean, as seeds may draw samples of their own."""
    from mllm_lit.metrics import tradeoff

    cells = max(view.rows.values(), key=len).values()
    found: dict[str, list[float]] = {}
    for cell in cells:
        sets = {name: row["before"] for name, row in sets_of(cell.summary).items()}
        sources = [sets[name] for name in cell.summary["sources"]]
        target = sets[cell.summary["target"]["name"]]
        for name, value in {"target": target, **sets, **(tradeoff(target, sources) if sources else {})}.items():
            found.setdefault(name, []).append(value)
    return [Score(found[column.score]) if column.score in found else None for column in columns.values()]


def asked(view: View, table: "Shown") -> list[Block]:
    """A table with an axis' values side by side, and the mean over them."""
    title = table.title or table.score + ("" if table.at == "end" else f", at {table.at}")
    try:
        values = view.values(table.score, table.at)
    except ReportError as error:
        return [Text(f"{title}: {error}", warning=True)]
    place = list(view.study.rows).index(table.columns) if table.columns != SEED else None
    columns: dict[str, Column] = {}
    for row, seeds in values.items():
        kept = tuple("" if i == place else label for i, label in enumerate(row))
        for seed, value in seeds.items():
            column = columns.setdefault(seed if place is None else row[place], Column(table.score, {}, {}))
            column.values.setdefault(kept, {})[seed] = value
            if table.at == "end":
                column.cells.setdefault(kept, {})[seed] = view.rows[row][seed]
    order = [*view.study.axes.get(table.columns, {}), *view.study.file.stages]
    columns = {label: columns[label] for label in order if label in columns} | columns
    rows = list(dict.fromkeys(row for column in columns.values() for row in column.values))
    if len(columns) > 1:
        means = values if place is None else mean_of([column.values for column in columns.values()])
        columns["mean"] = Column(table.score, means, {})
    return compare(view, title, columns, {row: [] for row in rows})


def mean_of(columns: Sequence[Mapping[Row, Values]]) -> dict[Row, dict[str, float]]:
    """The mean over columns, of the seeds and rows that all of them have."""
    rows = [row for row in columns[0] if all(row in column for column in columns)]
    seeds = {row: [seed for seed in columns[0][row] if all(seed in column[row] for column in columns)] for row in rows}
    means = {row: {seed: sum(c[row][seed] for c in columns) / len(columns) for seed in seeds[row]} for row in rows}
    return {row: found for row, found in means.items() if found}


def compare(
    view: View,
    title: str,
    columns: Mapping[str, Column],
    lead: Mapping[Row, Sequence[Any]],
    heads: Sequence[str] = (),
    first: Sequence[Sequence[Any]] = (),
) -> list[Block]:
    """A table of scores with best and near marks, and behind a click the differences to the best of each column.

    Args:
        view: Of the study.
        title: Of the table.
        columns: By heading.
        lead: Row -> cells ahead of the scores.
        heads: Their headings.
        first: Rows above.
    """
    places = [i for i, _ in enumerate(view.study.rows) if len({row[i] for row in lead}) > 1]
    places = places or [i for i, axis in enumerate(view.study.rows) if axis in view.axes][:1]
    rows: list[list[Any]] = []
    for row, cells in lead.items():
        seeds = max(len(column.values.get(row, ())) for column in columns.values())
        rows.append([*(row[i] for i in places), seeds, *cells])
    gaps: list[list[Any]] = [[row[i] for i in places] for row in lead]
    for column in columns.values():
        lower, digits = view.lower(column.score), 3 if column.score.endswith("nll") else 1
        best = best_of(column.values, lower)
        for row, cells, apart in zip(lead, rows, gaps, strict=True):
            gap = None if best is None or row not in column.values else column.gap(view.study, row, best)
            mark = BEST if row == best else NEAR if gap is not None and gap.told is False else ""
            cells.append(Score(list(column.values[row].values()), digits, mark) if row in column.values else None)
            apart.append(BEST if row == best else None if gap is None else Gap(gap, digits))
    names = [view.study.rows[i] for i in places]
    rows = [*([*one[: len(names)], None, *one[len(names) :]] for one in first), *rows]
    table = Table(title, [*names, "seeds", *heads, *columns], rows, name=slug(title))
    note, title = "A row less the best row of the column; 95 % intervals.", f"{title}: differences to the best row"
    differences = Table(title, [*names, *columns], gaps, note, slug(title))
    return [table, Details(title, [differences])] if len(lead) > 1 else [table]


def stages(view: View) -> list[Block]:
    """The heat map of a sequence, tasks against stages, and its metrics; nothing of a study without stages."""
    return []


def trade_off(view: View) -> list[Block]:
    """Target against sources: a point for each row, one plot for each target."""
    targets = dict.fromkeys(cell.summary["target"]["name"] for cell in view.results.cells)
    pictures = []
    for target in targets:
        places, sweeps, starts = {}, {}, []
        for row, cells in view.rows.items():
            every = [cell.summary for cell in cells.values()]
            every = [one for one in every if one["target"]["name"] == target and one["tradeoff"]]
            if every:
                name = view.name(row)
                places[name] = tuple(fmean(one["tradeoff"][key] for one in every) for key in ("A_S", "A_T"))
                if line := swept([one["points"] for one in every if "points" in one]):
                    sweeps[f"{name}, swept"] = line
                for one in every:
                    sources = [source["before"] for source in one["sources"].values()]
                    starts.append((fmean(sources), one["target"]["before"]))
        if places:
            start = tuple(map(fmean, zip(*starts, strict=True)))
            pictures.append(svg(partial(plot, places, sweeps, start, target)))
    note = "Each point is a mean over seeds. On the Pareto front are the rows that no other beats on both axes."
    return [Figures(pictures, note=note, wide=True)] if pictures else []


def plot(places: Mapping[str, Any], sweeps: Mapping[str, Any], start: Any, target: str) -> "Figure":
    """The Pareto plot of one target."""
    from mllm_lit.plots import Series, scatter

    front = sorted(pareto(places), key=lambda name: places[name][0])
    series = {name: Series([(x, y, "") for x, y in line]) for name, line in sweeps.items()}
    series |= {  # points of rows over the lines
        "Pareto front": Series([(*places[name], name) for name in front]),
        "other rows": Series([(*at, name) for name, at in places.items() if name not in front], joined=False),
        "before training": Series([(*start, "before")], joined=False),
    }
    return scatter(f"{target} against what is kept of the sources", "A^S", f"A^T ({target})", series)


def swept(sweeps: Sequence[Sequence[Mapping[str, Any]]]) -> list[tuple[float, float]]:
    """The line of a merge over its strengths, a mean over seeds; empty where nothing was swept."""
    found: dict[str, list[Mapping[str, float]]] = {}
    for points in sweeps:
        for point in points:
            if point["label"].startswith("alpha "):
                found.setdefault(point["label"], []).append(point["tradeoff"])
    return [(fmean(one["A_S"] for one in each), fmean(one["A_T"] for one in each)) for each in found.values()]


def steps(view: View) -> list[Block]:
    """Scores over the steps of training, for each target."""
    blocks: list[Block] = []
    for target in dict.fromkeys(cell.summary["target"]["name"] for cell in view.results.cells):
        groups = {}
        for row, cells in view.rows.items():
            every = [cell.summary for cell in cells.values() if cell.summary["target"]["name"] == target]
            if any(one.get("during") for one in every):
                groups[view.name(row)] = every
        if groups:
            blocks.append(during(groups))
    note = "Lines are means over seeds, bands a standard deviation to each side, on the samples of the validations."
    return [*blocks, Text(note)] if blocks else []


# ---- what it cost, and what it was made from -----------------------------------------------------------------------


def rates(view: View) -> list[Block]:
    """Rates that were tried, and which was chosen."""
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
    return [Table("Learning rates", [*axes, "chosen", *tried], rows, note, "rates")] if found else []


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


def after_of(study: "Study", cell: "Result") -> Path:
    """The folder of a cell's answers after training, or after its merge."""
    merge = next((value.merge for value in study.values(cell.labels) if value.merge), None)
    folder = Path(str(cell.folder))
    if merge is None:
        return folder / "predictions" / "after"
    return folder / "merges" / merge.method / "predictions" / merge.point.replace(" ", "-")


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
