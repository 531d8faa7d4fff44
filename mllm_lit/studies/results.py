"""What the finished cells of a study have found, as it is kept beside the code and as reports read it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from mllm_lit.studies.plan import Plan, best
from mllm_lit.studies.store import Store
from mllm_lit.studies.study import TRADEOFF, Labels, StudyError, text


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


class Tried(msgspec.Struct):
    """A finished cell that is there to choose a rate.

    Attributes:
        key: As of :class:`Result`.
        labels: Of the axes along which it is chosen, and the rate.
        scores: By name: what rates can be chosen by.
    """

    key: str
    labels: Labels
    scores: dict[str, float]


class Results(msgspec.Struct):
    """What is known of a study.

    Attributes:
        study: Its name.
        cells: Finished ones.
        missing: The others.
        rates: Chosen on the validation split.
        settings: Such as all cells have; a file has them once.
        tried: Finished cells that choose rates, whether their choice is made or not.
    """

    study: str
    cells: list[Result] = []
    missing: list[Missing] = []
    rates: list[Rate] = []
    settings: dict[str, Any] = {}
    tried: list[Tried] = []

    def summaries(self) -> dict[str, dict[str, Any]]:
        """Of finished cells by key; of those that choose a rate, what it can be chosen by."""
        found = {cell.key: cell.summary for cell in self.cells if cell.key}
        for one in self.tried:
            found[one.key] = {"target": {"after": one.scores["target"]}, "tradeoff": one.scores}
        return found


def read_results(file: Path) -> Results | None:
    """Results that are kept in a file, ``None`` if it is not there.

    Raises:
        StudyError: It holds something else.
    """
    if not file.is_file():
        return None
    try:
        results = msgspec.json.decode(file.read_bytes(), type=Results)
    except msgspec.DecodeError as error:
        raise StudyError(f"{file} holds no results of a study: {error}. Remove it, or name another folder.") from error
    for cell in results.cells:
        cell.settings = results.settings | cell.settings
    return results


def write_results(results: Results, file: Path) -> None:
    """Keep results, without the places of this machine."""
    every = [cell.settings for cell in results.cells if cell.key]
    first = every[0] if every else {}
    common = {name: value for name, value in first.items() if all(one.get(name, ...) == value for one in every)}
    kept = msgspec.structs.replace(
        results,
        cells=[
            msgspec.structs.replace(
                cell, folder=None, settings={name: value for name, value in cell.settings.items() if name not in common}
            )
            for cell in results.cells
        ],
        missing=[msgspec.structs.replace(cell, log=None) for cell in results.missing],
        settings=common,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(kept), indent=1) + b"\n")


def scores_of(summary: Mapping[str, Any]) -> dict[str, float]:
    """Those by which a rate can be chosen; without sources there is the target's alone.

    >>> scores_of({"target": {"after": 50.0}, "tradeoff": None})
    {'target': 50.0}
    """
    trade = summary["tradeoff"] or {}
    return {"target": summary["target"]["after"]} | {name: trade[name] for name in TRADEOFF if name in trade}


def collect(plan: Plan, store: Store, kept: Results | None = None) -> Results:
    """What is known of a study: what its cells have found, how rates were chosen, and what is not finished.

    Args:
        plan: Of the study.
        store: Of the runs.
        kept: Earlier results. Of them, cells without a key stand for such as were not run since: their settings were
            not written down.
    """
    cells, missing = [], []
    old = {tuple(cell.labels.items()): cell for cell in kept.cells if not cell.key} if kept is not None else {}
    states = {tuple(cell.labels.items()): state for cell, state in store.states(plan.cells()) if not cell.choosing}
    for cell in plan.reported():
        if (summary := store.summary(cell)) is not None:
            folder = str(store.run(cell)) if store.run(cell).is_dir() else None
            settings = dict((cell.identity or {}).get("settings", {}))
            cells.append(Result(str(cell.key), cell.labels, summary, settings, store.code(cell), folder))
        elif tuple(cell.labels.items()) in old:
            cells.append(old[tuple(cell.labels.items())])
        else:
            log = store.file(cell, ".log")
            state = states.get(tuple(cell.labels.items()), store.state(cell))
            missing.append(Missing(cell.labels, state, str(log) if cell.key and log.is_file() else None))
    rates = [
        Rate(dict(labels), best(tried), {text(rate): score for rate, score in tried.items()})
        for labels, tried in plan.tried.items()
    ]
    if kept is not None and old:
        chosen = [rate.labels for rate in rates]
        rates += [rate for rate in kept.rates if rate.labels not in chosen]
    tried = [
        Tried(str(cell.key), cell.labels, scores_of(summary))
        for cell in plan.cells()
        if cell.choosing and (summary := store.summary(cell)) is not None
    ]
    return Results(plan.study.file.name, cells, missing, rates, tried=tried)
