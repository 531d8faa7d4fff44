"""Rows of other sets' train splits, mixed into the target's: the simplest remedy against forgetting."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import Sample
from mllm_lit.data.subset import subset

if TYPE_CHECKING:
    from mllm_lit.sources import Source


def replayed(sets: "Mapping[str, Source]", share: float, target_rows: int, seed: int) -> dict[str, list[Sample]]:
    """Draw ``share`` rows per row of the target, evenly from the train splits of some sets.

    Args:
        sets: The sets to draw from, by name.
        share: Replayed rows per row of the target; 0.1 makes one row in eleven a replayed one.
        target_rows: Rows of the target that are trained on.
        seed: Of the choice.

    Returns:
        The rows of each set, marked with its name; their ids begin with it.

    Raises:
        DatasetError: The share comes to no row, or there is no set; or a set has no train split,
            too few rows, or is scored on its train split.
    """
    count = round(share * target_rows)
    if not sets or not count:
        none = "there is no set to replay: give data.sources, or name some of data.others in data.replay_from"
        raise DatasetError(
            f"data.replay is {share}, but " + (f"that share of {target_rows} rows is none" if sets else none)
        )
    each, rest = divmod(count, len(sets))
    return {name: _drawn(name, one, each + (number < rest), seed) for number, (name, one) in enumerate(sets.items())}


def _drawn(name: str, source: "Source", count: int, seed: int) -> list[Sample]:
    split = source.task.split_names["train"]
    if split == source.split:
        raise DatasetError(
            f"{name!r} is scored on its split {split!r}, so replaying that one would train on what measures "
            "forgetting; score another split, or leave it out of data.replay_from."
        )
    rows = source.task.training_rows(source.root, split, (source.split,))
    if len(rows) < count:
        raise DatasetError(
            f"data.replay asks for {count} rows of {name!r}, whose split {split!r} has {len(rows)}. Lower "
            "data.replay, or name the sets to draw from in data.replay_from."
        )
    chosen = subset(rows, max_samples=count, seed=seed) if count else []
    return [replace(row, id=f"{name}/{row.id}", source=name) for row in chosen]
