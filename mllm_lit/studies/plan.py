"""The cells of a study: runs and merges, what each depends on, and how each is known again."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mllm_lit.studies.identity import digest
from mllm_lit.studies.study import SEED, STAGE, Labels, Merge, Options, Study, StudyError, Value, matches, text

Facts = Callable[[Sequence[str]], Mapping[str, Any]]
"""What the result of a run with these words depends on; see :func:`mllm_lit.studies.identity.facts`."""
Summaries = Callable[["Cell"], Mapping[str, Any] | None]
"""The ``summary.json`` of a finished cell, else ``None``."""


@dataclass(frozen=True)
class Cell:
    """One run of ``tools/fit.py``, or a merge of one.

    Attributes:
        labels: Where it stands on the axes; of a run that chooses a rate, on those that the choice depends on.
        options: Of the command line.
        choosing: It is there to choose a rate.
        after: The cell whose run this one starts from, or merges.
        start: How it starts from it, ``keep`` or ``merge``.
        merge: What is merged.
        identity: ``settings``, ``data`` and ``code``; ``parent``, the key of ``after``.
        key: By which it is known: a digest of settings, data and parent. ``None`` while its rate is not chosen.
        waits: Keys of the cells that choose it.
    """

    labels: Labels
    options: Options = field(default_factory=dict)
    choosing: bool = False
    after: "Cell | None" = None
    start: str = "keep"
    merge: Merge | None = None
    identity: Mapping[str, Any] | None = None
    key: str | None = None
    waits: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """For people."""
        said = [f"{axis} {label}" for axis, label in self.labels.items()]
        return ("choosing: " if self.choosing else "") + ", ".join(said or ["the run"])

    def words(self) -> list[str]:
        """For ``tools/fit.py``; a part's file stands before what is changed in it."""
        return words_of(self.options)


def words_of(options: Mapping[str, Any]) -> list[str]:
    """Options as the command line takes them, those of few dots first."""
    words: list[str] = []
    for name, value in sorted(options.items(), key=lambda item: (item[0] != "config", item[0].count("."))):
        for one in value if name == "config" and isinstance(value, list) else [value]:
            words += [f"--{name}", text(one)] if not text(one).startswith("-") else [f"--{name}={text(one)}"]
    return words


class Plan:
    """What a study consists of, as far as the results that are there tell.

    Args:
        study: From a file.
        facts: Tells what a result depends on.
        summary: Gives what a finished cell has found.
    """

    def __init__(self, study: Study, facts: Facts, summary: Summaries) -> None:
        self.study, self.summary = study, summary
        self._facts, self._known = facts, dict[tuple[str, ...], Mapping[str, Any]]()

    def cells(self) -> list[Cell]:
        """Every cell, such as others depend on before them; none twice."""
        found: dict[Any, Cell] = {}
        for cell in self._cells():
            found.setdefault(cell.key or (cell.name, cell.merge), cell)
        return list(found.values())

    def reported(self) -> list[Cell]:
        """Those of the report: one for every combination and stage."""
        return [cell for cell in self._cells() if not cell.choosing]

    def _cells(self) -> Iterator[Cell]:
        for labels in self.study.combinations():
            merge = next((value.merge for value in self.study.values(labels) if value.merge), None)
            if merge is None:
                yield from self._trained(labels)
                continue
            (axis,) = (axis for axis, label in labels.items() if self._value(axis, label).merge)
            *_, run = self._trained(labels | {axis: merge.of})
            key = run.key and digest(part.encode() for part in (run.key, merge.method, merge.arguments))[:16]
            identity = run.identity and {**run.identity, "parent": run.key, "merge": [merge.method, merge.arguments]}
            yield Cell(labels, after=run, merge=merge, identity=identity, key=key, waits=run.waits)

    def _trained(self, labels: Labels) -> Iterator[Cell]:
        rate, choosing = self._rate(labels)
        yield from choosing
        waits = tuple(str(cell.key) for cell in choosing) if rate is None else ()
        chosen = {} if rate is None or self.study.file.rate is None else {self.study.file.rate.option: rate}
        before: Cell | None = None
        for stage in self.study.file.stages or [None]:  # type: ignore[list-item]
            options = self._options(labels, stage) | chosen
            named = labels | ({} if stage is None else {STAGE: stage})
            if not any(matches(named, rule) for rule in self.study.file.exclude):
                before = self._cell(named, options, before, waits)
                yield before

    def _options(self, labels: Labels, stage: str | None = None) -> Options:
        file, options = self.study.file, dict(self.study.file.options)
        options |= file.stages[stage] if stage is not None else {}
        for value in self.study.values(labels):
            options |= value.options
        return options

    def _rate(self, labels: Labels) -> tuple[float | None, list[Cell]]:
        """The rate of a combination, ``None`` while it is not chosen, and the cells that choose it."""
        choice = self.study.file.rate
        if choice is None:
            return None, []
        own = [value.rates for value in self.study.values(labels) if value.rates is not None]
        rates = own[-1] if own else tuple(choice.rates or ())
        if not rates:
            raise StudyError(f"No rates are given for {labels}: set rate.rates, or rates of one of these values.")
        if len(rates) == 1:
            return rates[0], []
        axes = [axis for axis in self.study.axes if axis != SEED] if choice.by is None else choice.by
        named = {axis: label for axis, label in labels.items() if axis in axes}
        first = next(each for each in self._runs() if matches(each, named)) | named
        first.pop(SEED, None)
        stage = next(iter(self.study.file.stages), None)
        file, options = self.study.file, dict(self.study.file.options)
        options |= (file.stages[stage] if stage is not None else {}) | choice.options
        for value in self.study.values(first):
            options |= value.options
        cells = [
            self._cell(named | {"rate": text(rate)}, options | {choice.option: rate}, choosing=True)
            for rate in sorted(rates)
        ]
        scores = [None if (found := self.summary(cell)) is None else score(found, choice.score) for cell in cells]
        if any(value is None for value in scores):
            return None, cells
        best = max(zip(scores, sorted(rates), strict=True), key=lambda pair: (pair[0], -pair[1]))
        return best[1], cells

    def _runs(self) -> Iterator[Labels]:
        for labels in self.study.combinations():
            if not any(value.merge for value in self.study.values(labels)):
                yield labels

    def _value(self, axis: str, label: str) -> Value:
        return self.study.axes[axis][label]

    def _cell(
        self,
        labels: Labels,
        options: Options,
        after: Cell | None = None,
        waits: tuple[str, ...] = (),
        choosing: bool = False,
    ) -> Cell:
        start = self.study.file.start
        if waits:
            return Cell(labels, options, choosing, after, start, waits=waits)
        if after is not None:
            options = options | {"model.start": start}
        words = words_of(options)
        identity = self._identity(words)
        if after is not None:
            identity = {**identity, "parent": after.key}
        return Cell(labels, options, choosing, after, start, identity=identity, key=key_of(identity))

    def _identity(self, words: Sequence[str]) -> Mapping[str, Any]:
        known = tuple(words)
        if known not in self._known:
            self._known[known] = self._facts(words)
        return self._known[known]


def score(summary: Mapping[str, Any], name: str) -> float:
    """A run's score after training: of the target, or of both together."""
    found: float = summary["target"]["after"] if name == "target" else summary["tradeoff"][name]
    return found


def key_of(identity: Mapping[str, Any]) -> str:
    """The first 16 digits of a SHA-256 of settings, data and parent; settings that are off (``null``) have no part in
    it, so that an option which is new and off leaves every cell what it was.
    """
    settings = {name: value for name, value in identity["settings"].items() if value not in (None, "None")}
    parts = (json.dumps(settings, sort_keys=True), identity["data"], identity.get("parent") or "")
    return digest(part.encode() for part in parts)[:16]
