"""What a study has found: verdicts on its claims, tables, the trade-off, and scores over the steps."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING, Any

from mllm_lit.reports.page import Block, Details, Figures, Gap, Score, Table, Text, slug, svg
from mllm_lit.reports.runs import HEADINGS, during
from mllm_lit.reports.scores import (
    BEST,
    NEAR,
    SEED,
    ReportError,
    best_of,
    pareto,
    rank_correlation,
    seed_of,
    sets_of,
    verdicts,
)
from mllm_lit.reports.view import Column, Row, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mllm_lit.studies.study import Correlation, Shown, Spread, Wins

TRADEOFF = ("A_S", "A_T", "H", "O")
NOISE = (
    "Means ± standard deviations over seeds. The best of a column is bold; ≈ marks rows within noise of it: the 95 % "
    "interval of their paired differences holds 0. Pairs are the seeds (Student's interval over them) or, of a single "
    "seed whose answers are here, its samples (bootstrap; the noise of the test set alone). No correction is made for "
    "the number of rows."
)


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
    head = ["claim", "made in", "score", "where", "difference", "seeds that show it", "shows here"]
    shown = [i for i, name in enumerate(head) if name != "where" or any(row[i] for row in rows)]
    head, rows = [head[i] for i in shown], [[row[i] for i in shown] for row in rows]
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
        blocks += [correlation(view, one) for one in view.study.file.correlations]
        blocks += [spread(view, one) for one in view.study.file.spreads]
        blocks += [wins(view, one) for one in view.study.file.wins]
    for paper in view.study.file.paper:
        head = list(dict.fromkeys(column for row in paper.rows.values() for column in row))
        rows = [[name, *(row.get(column) for column in head)] for name, row in paper.rows.items()]
        blocks.append(Table(paper.title, ["", *head], rows, "Figures of the paper.", f"paper_{slug(paper.title)}"))
    return blocks


def correlation(view: View, asked: "Correlation") -> Block:
    """Whether one score goes with another, within each value of an axis."""
    title = asked.title or f"{asked.score} and {asked.by}"
    try:
        first, second = view.values(asked.score), view.values(asked.by)
    except ReportError as error:
        return Text(f"{title}: {error}", warning=True)
    place, rows = view.study.rows.index(asked.columns), []
    for label in dict.fromkeys(row[place] for row in first):
        own = [row for row in first if row[place] == label and row in second]
        runs = [(value, second[row][seed]) for row in own for seed, value in first[row].items() if seed in second[row]]
        means = [(fmean(first[row].values()), fmean(second[row].values())) for row in own]
        rows.append([label, len(runs), rank_correlation(runs), len(means), rank_correlation(means)])
    note = "Spearman's rank correlation: 1 where one score rises with the other throughout, -1 where it falls."
    return Table(title, [asked.columns, "runs", "over runs", "rows", "over means of rows"], rows, note, slug(title))


def spread(view: View, asked: "Spread") -> Block:
    """Extremes and standard deviation of a score along axes."""
    title = asked.title or f"{asked.score} over {', '.join(asked.over)}"
    try:
        values = view.values(asked.score)
    except ReportError as error:
        return Text(f"{title}: {error}", warning=True)
    axes = [axis for axis in view.study.rows if axis not in asked.over]
    found: dict[Row, list[float]] = {}
    for row, seeds in values.items():
        kept = tuple(label for axis, label in zip(view.study.rows, row, strict=True) if axis in axes)
        found.setdefault(kept, []).extend(seeds.values() if SEED in asked.over else [fmean(seeds.values())])
    rows = [[*row, len(own), Score(own), min(own), max(own), max(own) - min(own)] for row, own in found.items()]
    note = f"Over {', '.join(asked.over)}."
    return Table(title, [*axes, "values", "mean", "lowest", "highest", "range"], rows, note, slug(title))


def wins(view: View, asked: "Wins") -> Block:
    """In how many pairs of runs each value of an axis does better than those that are to be beaten."""
    title = asked.title or f"Better than {', '.join(asked.over)}"
    place = view.study.rows.index(asked.axis)
    rows: dict[str, list[str | None]] = {row[place]: [] for row in view.rows}
    for score in asked.scores:
        try:
            values = view.values(score)
        except ReportError as error:
            return Text(f"{title}: {error}", warning=True)
        for rival in asked.over:
            for label, told in rows.items():
                pairs = [
                    (value, beaten[seed])
                    for row, seeds in values.items()
                    if row[place] == label != rival
                    for beaten in [values.get((*row[:place], rival, *row[place + 1 :]), {})]
                    for seed, value in seeds.items()
                    if seed in beaten
                ]
                won = sum(one < other if view.lower(score) else one > other for one, other in pairs)
                told.append(f"{won} of {len(pairs)}" if pairs else None)
    columns = [f"{HEADINGS.get(score, score)} over {rival}" for score in asked.scores for rival in asked.over]
    note = "Pairs of runs with the same seed and all else the same, in how many of them a row's is better."
    return Table(title, [asked.axis, *columns], [[label, *told] for label, told in rows.items()], note, slug(title))


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


def mean_of(columns: Sequence[Mapping[Row, Mapping[str, float]]]) -> dict[Row, dict[str, float]]:
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
    places = places or [i for i, _ in enumerate(view.study.rows) if any(row[i] for row in lead)][:1]
    names = [view.study.rows[i] for i in places] or ["study"]
    labels = {row: [row[i] for i in places] or [view.results.study] for row in lead}
    rows: list[list[Any]] = []
    for row, cells in lead.items():
        seeds = max(len(column.values.get(row, ())) for column in columns.values())
        rows.append([*labels[row], seeds, *cells])
    gaps: list[list[Any]] = [list(labels[row]) for row in lead]
    for column in columns.values():
        lower, digits = view.lower(column.score), 3 if column.score.endswith("nll") else 1
        best = best_of(column.values, lower)
        for row, cells, apart in zip(lead, rows, gaps, strict=True):
            gap = None if best is None or row not in column.values else column.gap(view.study, row, best)
            mark = BEST if row == best else NEAR if gap is not None and gap.told is False else ""
            cells.append(Score(list(column.values[row].values()), digits, mark) if row in column.values else None)
            apart.append(BEST if row == best else None if gap is None else Gap(gap, digits))
    rows = [*([*one[: len(names)], None, *one[len(names) :]] for one in first), *rows]
    table = Table(title, [*names, "seeds", *heads, *columns], rows, name=slug(title))
    note, title = "A row less the best row of the column; 95 % intervals.", f"{title}: differences to the best row"
    differences = Table(title, [*names, *columns], gaps, note, slug(title))
    return [table, Details(title, [differences])] if len(lead) > 1 else [table]


def stages(view: View) -> list[Block]:
    """A sequence's metrics, of strict score, relaxed one and NLL; what each task scores after each stage."""
    names = list(view.study.file.stages)
    if not names:
        return []
    from mllm_lit.metrics import sequence_scores
    from mllm_lit.plots import heat_map

    rows: list[list[Any]] = []
    maps, curves = [], []
    for label, seeds in sequences(view).items():
        kept = [[one[stage].summary["tradeoff"] for one in seeds if one[stage].summary["tradeoff"]] for stage in names]
        sources = [Score([one["A_S"] for one in each]) if each else None for each in kept]
        for kind in ("score", "relaxed", "nll"):
            tables = [task_scores(one, kind) for one in seeds]
            if not all(tables):
                continue
            found = [sequence_scores(table) for table in tables if table]
            digits = 3 if kind == "nll" else 1
            columns = [[value for one in found if (value := one[name]) is not None] for name in found[0]]
            metrics = [Score(values, digits) if values else None for values in columns]
            rows.append([label, kind, len(seeds), *metrics, *(sources if kind == "score" else [None] * len(names))])
            if kind == "score":
                cells = {
                    (stage, task): fmean(table[stage][task] for table in tables if table)
                    for stage in names
                    for task in names
                }
                maps.append(svg(partial(heat_map, f"{label}: tasks (columns) after stages (rows)", cells)))
                curves += [
                    [label, stage, *(Score([t[stage][k] for t in tables if t]) for k in names)] for stage in names
                ]
    if not rows:
        return [Text("No sequence is finished.")]
    head = ["sequence", "of", "seeds", *sequence_scores([[0.0, 0.0]] * 2), *(f"A^S after {stage}" for stage in names)]
    note = (
        "MFT: what was learned, each task right after its own stage. MFN: all tasks at the end. MAA: over the stages. "
        "BWT: what earlier tasks have gained since, below 0 where they were forgotten (of the NLL, above 0). Relaxed "
        "scores and NLL tell lost facts from a lost format of answers."
    )
    return [
        Table("Sequence", head, rows, note, "sequence"),
        Figures(maps, note="Mean over seeds; right of the diagonal are tasks whose turn had not come."),
        Details(
            "Scores of all tasks after every stage",
            [Table("Tasks", ["sequence", "after", *names], curves, name="tasks")],
        ),
    ]


def sequences(view: View) -> dict[str, list[dict[str, Any]]]:
    """Name of a sequence -> for each seed that has finished it, stage -> cell."""
    names, found = list(view.study.file.stages), dict[tuple[str, str], dict[str, Any]]()
    for cell in view.results.cells:
        labels = [label for axis, label in cell.labels.items() if axis not in (SEED, "stage")]
        key = " · ".join(labels) or view.results.study, seed_of(cell)
        found.setdefault(key, {})[cell.labels["stage"]] = cell
    told: dict[str, list[dict[str, Any]]] = {}
    for (label, _), cells in found.items():
        if all(name in cells for name in names):
            told.setdefault(label, []).append(cells)
    return told


def task_scores(cells: Mapping[str, Any], kind: str) -> dict[str, dict[str, float]] | None:
    """The table a(t, i) of one sequence: stage -> task -> score; ``None`` where a task has none of the kind.

    Args:
        cells: Stage -> cell.
        kind: ``score`` (the headline), ``relaxed`` or ``nll``.
    """
    table: dict[str, dict[str, float]] = {}
    for stage, cell in cells.items():
        for task in cells:
            summary = cell.summary
            name = summary["target"]["name"] if task == stage else task
            row = sets_of(summary)[name] if task == stage else summary["others"][task]
            metric = {"score": row["metric"], "relaxed": f"{row['metric']}_relaxed", "nll": "nll"}[kind]
            scores = summary.get("scores", {}).get("after", {}).get(name, {}) | {row["metric"]: row["after"]}
            if metric not in scores:
                return None
            table.setdefault(stage, {})[task] = scores[metric]
    return table


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
