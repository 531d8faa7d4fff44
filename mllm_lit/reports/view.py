"""A study's results sorted by rows: one for every combination of labels, seeds aside."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_lit.reports.predictions import over_scored, pairs_of
from mllm_lit.reports.scores import Difference, ReportError, lower_is_better, over_seeds, scores_of, seed_of, sets_of

if TYPE_CHECKING:
    from mllm_lit.studies.results import Result, Results
    from mllm_lit.studies.study import Study

Row = tuple[str, ...]
"""Labels of the axes that tell rows apart."""


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
        """Axes along which the rows differ; at least a name for the one row."""
        differ = [axis for i, axis in enumerate(self.study.rows) if len({row[i] for row in self.rows}) > 1]
        return differ or list(self.study.rows[:1]) or ["study"]

    def labels(self, row: Row) -> list[str]:
        """Of the axes along which rows differ."""
        found = [label for axis, label in zip(self.study.rows, row, strict=True) if axis in self.axes]
        return found or [self.results.study]

    def name(self, row: Row) -> str:
        """Of a row, in plots."""
        return " · ".join(self.labels(row))

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


def after_of(study: "Study", cell: "Result") -> Path:
    """The folder of a cell's answers after training, or after its merge."""
    merge = next((value.merge for value in study.values(cell.labels) if value.merge), None)
    folder = Path(str(cell.folder))
    if merge is None:
        return folder / "predictions" / "after"
    return folder / "merges" / merge.method / "predictions" / merge.point.replace(" ", "-")
