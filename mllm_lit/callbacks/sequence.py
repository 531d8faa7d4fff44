"""The picture of a sequence of runs that start from one another: every task's score after every stage."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L

from mllm_lit.loggers import log_picture, log_scalars
from mllm_lit.metrics import sequence_scores
from mllm_lit.plots import heat_map


def log_sequence(trainer: L.Trainer, earlier: Sequence[Path], result: Mapping[str, Any]) -> None:
    """Log the heat map ``sequence/scores``, and ``sequence/MFT``, MFN, MAA and BWT.

    Without an earlier run there is nothing to show. The four scores need every earlier target among ``data.others`` of
    every stage, and targets of different names.

    Args:
        trainer: Whose loggers get it.
        earlier: The directories of the runs before this one, the first of all first.
        result: This run's summary.
    """
    if not earlier:
        return
    rows = stage_scores([*map(read_summary, earlier), result])
    tasks = [task for task, _ in rows]
    columns = list(dict.fromkeys([*tasks, *rows[-1][1]]))
    cells = {
        (f"{number} {task}", column): row[column]
        for number, (task, row) in enumerate(rows, 1)
        for column in columns
        if column in row
    }
    whole = len(set(tasks)) == len(tasks) and all(set(tasks[:n]) <= set(row) for n, (_, row) in enumerate(rows, 1))
    found = sequence_scores(dict(rows)) if whole else {}
    metrics = {f"sequence/{name}": value for name, value in found.items() if value is not None}
    log_scalars(trainer, metrics, trainer.global_step)
    draw = partial(heat_map, "tasks (columns) after stages (rows)", cells)
    log_picture(trainer, "sequence/scores", draw, trainer.global_step)


def read_summary(run: Path) -> Mapping[str, Any]:
    """``summary.json`` of a run; one that is not there has no scores."""
    file = run / "summary.json"
    found: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def stage_scores(summaries: Sequence[Mapping[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    """Of each stage that has a summary its target, and what target and other sets score after it."""
    rows = [(told["target"], told.get("others", {})) for told in summaries if told]
    return [
        (target["name"], {target["name"]: target["after"]} | {name: row["after"] for name, row in others.items()})
        for target, others in rows
    ]
