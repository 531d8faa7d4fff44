"""What was learned and kept over a sequence of tasks, from the scores of every task after every stage."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

Table = Any
"""Scores a(t, i) of task i after stage t, tasks in the order in which they were trained: rows of numbers or a NumPy
array (stages, tasks), or task trained -> task scored -> score. Only scores of tasks trained so far (i ≤ t) are read."""


def sequence_scores(table: Table) -> dict[str, float | None]:
    """All of the metrics below, by name; ``BWT`` is ``None`` after a single stage.

    >>> sequence_scores([[80, 10], [60, 90]])
    {'MFT': 85.0, 'MFN': 75.0, 'MAA': 77.5, 'BWT': -20.0}
    """
    return {"MFT": mft(table), "MFN": mfn(table), "MAA": maa(table), "BWT": bwt(table)}


def mft(table: Table) -> float:
    """Mean score of each task right after its own stage, the mean of a(i, i): what was learned.

    >>> mft({"gqa": {"gqa": 80}, "vizwiz": {"gqa": 60, "vizwiz": 90}})
    85.0
    """
    return _mean(row[-1] for row in trained(table))


def mfn(table: Table) -> float:
    """Mean score of all tasks after the last stage, the mean of a(T, i), also called Last: what is kept."""
    return _mean(trained(table)[-1])


def maa(table: Table) -> float:
    """Mean over the stages of the mean score of the tasks trained so far (CoIN, Chen et al., arXiv 2403.08350)."""
    return _mean(map(_mean, trained(table)))


def bwt(table: Table) -> float | None:
    """Backward transfer (GEM, Lopez-Paz and Ranzato, arXiv 1706.08840): the mean over i < T of a(T, i) − a(i, i).

    Below 0 where earlier tasks were forgotten; ``None`` after a single stage, when there is no earlier task.
    """
    rows = trained(table)
    changes = [last - row[-1] for last, row in zip(rows[-1][:-1], rows, strict=False)]
    return _mean(changes) if changes else None


def trained(table: Table) -> list[list[float]]:
    """For each stage the scores of the tasks trained so far, its own last.

    Raises:
        ValueError: There is no stage, or a score that is needed is missing or not a number; the message names it.
    """
    stages = list(table) if isinstance(table, Mapping) else list(range(len(table)))
    if not stages:
        raise ValueError("the table of scores has no stage")
    return [[_cell(table, stage, task) for task in stages[:count]] for count, stage in enumerate(stages, 1)]


def _cell(table: Table, stage: Any, task: Any) -> float:
    where = f"the score of task {task!r} after stage {stage!r}"
    try:
        value = float(table[stage][task])
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"{where} is missing; every task has to be scored after its own stage and all later"
        ) from error
    if not math.isfinite(value):
        raise ValueError(f"{where} is {value}; every task has to be scored after its own stage and all later")
    return value


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers)
