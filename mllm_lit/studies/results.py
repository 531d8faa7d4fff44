"""What the finished cells of a study have found, as it is kept beside the code and as reports read it."""

from pathlib import Path
from typing import Any

import msgspec

from mllm_lit.studies.study import Labels


class Result(msgspec.Struct, omit_defaults=True):
    """A finished cell.

    Attributes:
        key: By which it is known; see :func:`mllm_lit.studies.plan.key_of`.
        labels: Where it stands on the axes of the study, the seed among them.
        summary: Its ``summary.json``.
        settings: Resolved, by dotted name.
        code: A digest of the package's source that made it; ``None`` where that is not known.
        folder: Its run directory, where that is on this machine.
    """

    key: str
    labels: Labels
    summary: dict[str, Any]
    settings: dict[str, Any] = {}
    code: str | None = None
    folder: str | None = None


class Missing(msgspec.Struct):
    """A cell that is not finished.

    Attributes:
        labels: Where it stands on the axes.
        state: ``failed``, ``blocked`` (what it depends on has failed), ``begun``, ``running``, ``waiting`` (for a rate
            to be chosen) or ``to do``.
        log: What it printed, where there is such a file.
    """

    labels: Labels
    state: str
    log: str | None = None


class Rate(msgspec.Struct):
    """How a rate was chosen.

    Attributes:
        labels: Of the axes along which it was chosen.
        chosen: The rate.
        tried: Rate -> score on the validation split.
    """

    labels: Labels
    chosen: float
    tried: dict[str, float]


class Results(msgspec.Struct):
    """What is known of a study.

    Attributes:
        study: Its name.
        cells: Finished ones.
        missing: The others.
        rates: Chosen on the validation split.
    """

    study: str
    cells: list[Result] = []
    missing: list[Missing] = []
    rates: list[Rate] = []


def read_results(file: Path) -> Results | None:
    """Results that are kept in a file, ``None`` if it is not there."""
    return msgspec.json.decode(file.read_bytes(), type=Results) if file.is_file() else None


def write_results(results: Results, file: Path) -> None:
    """Keep results, without the places of this machine."""
    kept = Results(
        results.study,
        [msgspec.structs.replace(cell, folder=None) for cell in results.cells],
        [msgspec.structs.replace(cell, log=None) for cell in results.missing],
        results.rates,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")
