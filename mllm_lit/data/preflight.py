"""Faults in the data, found before the first step and reported all at once."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from mllm_lit.data.faults import DatasetError, Fault
from mllm_lit.data.images import ImageError, load_image
from mllm_lit.data.sample import ImageRef, Sample

__all__ = ["Fault", "check", "check_images", "check_rows", "image_faults", "read_all", "row_faults"]


def check_rows(samples: Sequence[Sample], split: str) -> None:
    """The checks that need no decoding: cheap enough to precede every run.

    Raises:
        DatasetError: The split is empty, or rows are faulty; see :func:`row_faults`.
    """
    if not samples:
        raise DatasetError(f"{split}: there is not a single row; check the split's name and the subset options")
    faults = row_faults(samples)
    if faults:
        raise DatasetError.of(faults)


def check_images(samples: Sequence[Sample], workers: int | None = None) -> None:
    """Decode every picture.

    Raises:
        DatasetError: Some cannot be used; see :func:`image_faults`.
    """
    faults = image_faults(samples, workers)
    if faults:
        raise DatasetError.of(faults)


def read_all(readers: Mapping[str, Callable[[], list[Sample]]]) -> tuple[dict[str, list[Sample]], list[Fault]]:
    """The rows of the splits that can be read, and the faults of those that cannot."""
    datasets: dict[str, list[Sample]] = {}
    faults: list[Fault] = []
    for name, read in readers.items():
        try:
            datasets[name] = read()
        except DatasetError as error:
            faults += error.faults or [Fault(name, "", str(error))]
    return datasets, faults


def check(datasets: Mapping[str, Sequence[Sample]], workers: int | None = None) -> list[Fault]:
    """Every fault of every row and picture of some splits, with a progress bar.

    Args:
        datasets: Name of each split, and its rows.
        workers: Threads that decode; ``None`` for one per core.
    """
    faults = [Fault(name, "", "there is not a single row") for name, samples in datasets.items() if not samples]
    for name, samples in datasets.items():
        faults += row_faults(samples, files=False) + image_faults(samples, workers, name)
    return faults


def row_faults(samples: Iterable[Sample], files: bool = True) -> list[Fault]:
    """Repeated ids, blank questions and answers, no reference and, with ``files``, absent or empty pictures."""
    faults: list[Fault] = []
    first: dict[str, str] = {}
    absent: dict[Path, str | None] = {}
    for sample in samples:
        reasons = []
        if sample.id in first:
            reasons.append(f"id {sample.id!r} is also that of {first[sample.id]}; ids must be unique within a split")
        first.setdefault(sample.id, sample.origin)
        if sample.id.splitlines() != [sample.id] or sample.id != sample.id.strip():
            reasons.append(f"id {sample.id!r} is no text on one line, so no list of ids could hold it")
        told = [sample.id, *(turn.text for turn in sample.turns), *sample.references, *sample.choices]
        reasons += [f"{text!r:.80} holds half of a surrogate pair" for text in told if not encodable(text)]
        if any(turn.role == "user" and not turn.text.strip() for turn in sample.turns):
            reasons.append("the question is empty")
        if any(turn.role == "assistant" and not turn.text.strip() for turn in sample.turns):
            reasons.append("the answer is empty, so there is nothing to train on")
        if not any(reference.strip() for reference in sample.references):
            reasons.append("there is no reference answer to score against")
        faults += [_fault(sample, reason) for reason in reasons]
        for ref in sample.images if files else ():
            if isinstance(ref, Path):
                if ref not in absent:
                    absent[ref] = _absence(ref)
                if absent[ref] is not None:
                    faults.append(_fault(sample, f"image {ref} {absent[ref]}"))
            elif not ref.data:
                faults.append(_fault(sample, f"image {ref.name} is empty (0 bytes)"))
    return faults


def encodable(text: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def image_faults(samples: Iterable[Sample], workers: int | None = None, title: str = "images") -> list[Fault]:
    """Pictures that cannot be decoded, each under the first row that shows it."""
    from rich.progress import track

    users: dict[ImageRef, Sample] = {}
    for sample in samples:
        for ref in sample.images:
            users.setdefault(ref, sample)
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        results = pool.map(_decode, users.items())
        found = list(track(results, description=f"decoding {title}", total=len(users)))
    return [fault for fault in found if fault is not None]


def _absence(path: Path) -> str | None:
    try:
        return None if path.stat().st_size else "is empty (0 bytes)"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    except ValueError as error:  # a NUL, or half of a surrogate pair
        return f"({str(path)!r:.200}) is no name that a file can have: {error}"


def _decode(item: tuple[ImageRef, Sample]) -> Fault | None:
    ref, sample = item
    try:
        load_image(ref, sample.origin)
    except ImageError as error:
        return _fault(sample, str(error).removeprefix(f"{sample.origin}: "))
    return None


def _fault(sample: Sample, reason: str) -> Fault:
    origin, _, row = sample.origin.rpartition(":")
    return Fault(origin or sample.origin, row if origin else sample.id, reason)
