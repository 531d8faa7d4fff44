"""Rows of the sources' train splits, mixed into the target's: the simplest remedy against forgetting."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import Sample
from mllm_lit.data.subset import subset

if TYPE_CHECKING:
    from mllm_lit.sources import Source


def replayed(sources: "Mapping[str, Source]", share: float, target_rows: int, seed: int) -> dict[str, list[Sample]]:
    """Draw ``share`` rows per row of the target, evenly from the train splits of the sources.

    Args:
        sources: The sources to draw from, by name.
        share: Replayed rows per row of the target; 0.1 makes one row in eleven a replayed one.
        target_rows: Rows of the target that are trained on.
        seed: Of the choice.

    Returns:
        The rows of each source, marked with its name; their ids begin with it.

    Raises:
        DatasetError: The share comes to no row, or there is no source; or a source has no train split,
            too few rows, or is scored on its train split.
    """
    count = round(share * target_rows)
    if not sources or not count:
        raise DatasetError(
            f"data.replay is {share}, but "
            + (f"that share of {target_rows} rows is none" if sources else "there is no source to replay: data.sources")
        )
    each, rest = divmod(count, len(sources))
    return {
        name: _drawn(name, source, each + (number < rest), seed)
        for number, (name, source) in enumerate(sources.items())
    }


def _drawn(name: str, source: "Source", count: int, seed: int) -> list[Sample]:
    split = source.task.split_names["train"]
    if split == source.split:
        raise DatasetError(
            f"source {name!r} is scored on its split {split!r}, so replaying that one would train on what measures "
            "forgetting; score another split, or leave it out of data.replay_from."
        )
    rows = source.task.rows(source.root, split)
    if len(rows) < count:
        raise DatasetError(
            f"data.replay asks for {count} rows of the source {name!r}, whose split {split!r} has {len(rows)}. Lower "
            "data.replay, or name the sources to draw from in data.replay_from."
        )
    chosen = subset(rows, max_samples=count, seed=seed) if count else []
    return [replace(row, id=f"{name}/{row.id}", source=name) for row in chosen]
