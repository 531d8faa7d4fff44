"""A part of a split: seeded, nested and in the split's own order."""

import random
from collections.abc import Sequence
from pathlib import Path

from mllm_lit.data.faults import DatasetError, read_text
from mllm_lit.data.sample import Sample


def subset(
    samples: Sequence[Sample],
    max_samples: int | None = None,
    fraction: float | None = None,
    ids: Sequence[str] | None = None,
    seed: int = 0,
) -> list[Sample]:
    """Choose rows at random, or by name.

    The random choices of one seed are nested: the rows of 1,000 are among those of 5,000. They depend on the rows'
    ids only, and keep the order of ``samples``.

    Args:
        samples: The whole split.
        max_samples: At most so many rows.
        fraction: This share of the rows, in (0, 1], rounded, at least one.
        ids: Exactly these rows; not to be combined with the other two.
        seed: Of the random choice.

    Raises:
        DatasetError: An argument is out of range, ``ids`` is combined with another, or an id is not in the split.
    """
    if ids is not None:
        if max_samples is not None or fraction is not None:
            raise DatasetError("give either a list of ids, or max_samples / fraction, not both")
        wanted = set(ids)
        missing = sorted(wanted - {sample.id for sample in samples})
        if missing:
            raise DatasetError(f"{len(missing)} of the {len(wanted)} ids are not in this split, such as {missing[:5]}")
        return [sample for sample in samples if sample.id in wanted]
    if max_samples is not None and max_samples < 1:
        raise DatasetError(f"max_samples is {max_samples}, expected at least 1")
    if fraction is not None and not 0 < fraction <= 1:
        raise DatasetError(f"fraction is {fraction}, expected a share in (0, 1]")
    count = len(samples) if fraction is None else max(1, round(fraction * len(samples)))
    count = min(count, len(samples), count if max_samples is None else max_samples)
    if count == len(samples):
        return list(samples)
    order = sorted(range(len(samples)), key=lambda i: samples[i].id)
    random.Random(seed).shuffle(order)
    return [samples[i] for i in sorted(order[:count])]


def read_ids(path: Path) -> list[str]:
    """The ids in a file, one a line; blank lines do not count.

    Raises:
        DatasetError: The file cannot be read, is not UTF-8, or holds no id.
    """
    ids = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not ids:
        raise DatasetError(f"{path} holds no id; expected one id a line")
    return ids
