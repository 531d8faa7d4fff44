"""The cells of a study: runs and merges, what each depends on, and how each is known again."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from mllm_lit.errors import HIGHEST_SEED
from mllm_lit.studies.study import (
    EARLIER,
    SEED,
    STAGE,
    Labels,
    Merge,
    Options,
    Study,
    StudyError,
    Value,
    matches,
    text,
)

Facts = Callable[[Sequence[str]], Mapping[str, Any]]
"""What the result of a run with these words depends on; see :func:`mllm_lit.studies.identity.facts`."""
NONE = (None, "None")
"""Values of settings that are off."""
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
        merge: What is merged.
        identity: ``settings``, ``data`` and ``code``; ``parent``, the key of ``after``.
        key: By which it is known: a digest of settings, data and parent. ``None`` while its rate is not chosen.
        waits: Keys of the cells that choose it.
        slurm: Parameters of its job.
    """

    labels: Labels
    options: Options = field(default_factory=dict)
    choosing: bool = False
    after: "Cell | None" = None
    merge: Merge | None = None
    identity: Mapping[str, Any] | None = None
    key: str | None = None
    waits: tuple[str, ...] = ()
    slurm: Options = field(default_factory=dict)

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
        self.facts = cache_by_words(facts)
        self.tried: dict[tuple[tuple[str, str], ...], dict[float, float]] = {}
        """Of every choice that is made, by the labels that it was made for: rate -> score."""

    def cells(self) -> list[Cell]:
        """Every cell, such as others depend on before them; none twice."""
        found: dict[Any, Cell] = {}
        for cell in self._cells():
            found.setdefault(cell.key or (cell.name, cell.merge), cell)
        return list(found.values())

    def reported(self) -> list[Cell]:
        """Those of the report: one for every combination and stage."""
        return list({tuple(cell.labels.items()): cell for cell in self._cells() if not cell.choosing}.values())

    def _cells(self) -> Iterator[Cell]:
        for labels in self.study.combinations():
            merges = {axis: merge for axis, label in labels.items() if (merge := self.study.axes[axis][label].merge)}
            if not merges:
                yield from self._trained(labels)
                continue
            ((axis, merge),) = merges.items()
            *before, run = self._trained(labels | {axis: merge.of})
            yield from (*before, run)
            key = run.key and digest(part.encode() for part in (run.key, merge.method, merge.arguments))[:16]
            identity = run.identity and {**run.identity, "parent": run.key, "merge": [merge.method, merge.arguments]}
            yield replace(run, labels=labels, after=run, merge=merge, identity=identity, key=key)

    def _trained(self, labels: Labels) -> Iterator[Cell]:
        """The cells that choose the rate of a combination, then its run, or one for each stage."""
        file, values = self.study.file, self.study.values(labels)
        rate, choosing = self._rate(labels)
        yield from choosing
        waits = tuple(str(cell.key) for cell in choosing) if rate is None else ()
        chosen = {file.rate.option: rate} if file.rate is not None and rate is not None else {}
        slurm = file.slurm | {name: given for value in values for name, given in value.slurm.items()}
        if not file.stages:
            yield self._cell(Cell(labels, self._options(values) | chosen, waits=waits, slurm=slurm))
            return
        before: Cell | None = None
        for stage in file.stages:
            named = labels | {STAGE: stage}
            if any(matches(named, rule) for rule in file.exclude):
                continue
            options = self._stage(self._options(values, stage) | chosen, values, stage, first=before is None)
            before = self._cell(Cell(named, options, after=before, waits=waits, slurm=slurm))
            yield before

    def _options(self, values: Sequence[Value], stage: str | None = None, choosing: bool = False) -> Options:
        file = self.study.file
        options = file.options | (file.stages[stage] if stage is not None else {})
        if choosing and file.rate is not None:
            options = options | file.rate.options
        for value in values:
            options = options | value.options
        return options

    def _stage(self, options: Options, values: Sequence[Value], stage: str, first: bool) -> Options:
        """What a stage has beside its options: the other targets are scored, and earlier ones may be named."""
        stages = list(self.study.file.stages)
        earlier = stages[: stages.index(stage)]
        named = {name: earlier for name, value in options.items() if value == EARLIER and earlier}
        told = options | named if earlier else without_earlier(options)
        start = told.pop("model.start", self.study.file.start)
        other = {name: without_earlier(self._options(values, name)) for name in stages if name != stage}
        targets = {name: self.facts(words_of(one))["target"] for name, one in other.items()}
        others = {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": targets}}
        beside = {"data.name": stage} | ({"data.others": others} if targets else {})
        return told | ({} if first else {"model.start": start}) | beside

    def _rate(self, labels: Labels) -> tuple[float | None, list[Cell]]:
        """The rate of a combination, ``None`` while it is not chosen, and the cells that choose it."""
        choice = self.study.file.rate
        if choice is None:
            return None, []
        own = [value.rates for value in self.study.values(labels) if value.rates is not None]
        rates = sorted(own[-1] if own else choice.rates or ())
        if not rates:
            raise StudyError(f"No rates are given for {labels}: set rate.rates, or rates of one of these values.")
        if len(rates) == 1:
            return rates[0], []
        axes = [axis for axis in self.study.axes if axis != SEED] if choice.by is None else choice.by
        named = {axis: label for axis, label in labels.items() if axis in axes}
        first = next(each for each in self._runs() if matches(each, named))
        first.pop(SEED, None)
        values = self.study.values(first)
        options = without_earlier(self._options(values, next(iter(self.study.file.stages), None), choosing=True))
        options.pop("model.start", None)  # nothing is before the first stage
        slurm = self.study.file.slurm | {name: given for value in values for name, given in value.slurm.items()}
        cells = [
            self._cell(Cell(named | {"rate": text(rate)}, options | {choice.option: rate}, choosing=True, slurm=slurm))
            for rate in rates
        ]
        scores = [None if (found := self.summary(cell)) is None else score(found, choice.score) for cell in cells]
        known = {rate: found for rate, found in zip(rates, scores, strict=True) if found is not None}
        if len(known) < len(rates):
            return None, cells
        self.tried[tuple(named.items())] = known
        return best(known), cells

    def _runs(self) -> Iterator[Labels]:
        for labels in self.study.combinations():
            if not any(value.merge for value in self.study.values(labels)):
                yield labels

    def _cell(self, cell: Cell) -> Cell:
        """The cell with its identity, unless its rate is not chosen."""
        if cell.waits:
            return cell
        identity = dict(self.facts(cell.words()))
        identity.pop("target", None)
        if cell.after is not None:
            identity["parent"] = cell.after.key
        return replace(cell, identity=identity, key=key_of(identity))


def without_earlier(options: Options) -> Options:
    """Options without such as name earlier stages; nothing is replayed if there is nothing to replay from."""
    left = {name: value for name, value in options.items() if value != EARLIER}
    if options.get("data.replay_from") == EARLIER:
        left.pop("data.replay", None)
    return left


def best(tried: Mapping[float, float]) -> float:
    """The rate with the best score, of equal ones the smallest.

    >>> best({1e-3: 50.0, 1e-4: 50.0, 1e-2: 40.0})
    0.0001
    """
    return max(tried, key=lambda rate: (tried[rate], -rate))


def cache_by_words(facts: Facts) -> Facts:
    """The same, asked once for the same words whatever the seed, which is a setting and nothing else."""
    known: dict[tuple[str, ...], Mapping[str, Any]] = {}

    def told(words: Sequence[str]) -> Mapping[str, Any]:
        rest, seed = without_seed(words)
        if rest not in known:
            known[rest] = facts(words)
        found = known[rest]
        return found if seed is None else {**found, "settings": {**found["settings"], "seed_everything": seed}}

    return told


def without_seed(words: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Words with the seed struck out, and the seed; ``None`` where none is told, or one that has to be read.

    >>> without_seed(["--config", "a.yaml", "--seed_everything", "21"])
    (('--config', 'a.yaml', '--seed_everything', ''), 21)
    """
    if "--seed_everything" not in words:
        return tuple(words), None
    place = [*words].index("--seed_everything") + 1
    seed = words[place]
    if not seed.isdecimal() or seed != str(int(seed)) or int(seed) > HIGHEST_SEED:
        return tuple(words), None
    return (*words[:place], "", *words[place + 1 :]), int(seed)


def score(summary: Mapping[str, Any], name: str) -> float:
    """A run's score after training: of the target, or of both together."""
    found: float = summary["target"]["after"] if name == "target" else summary["tradeoff"][name]
    return found


def digest(parts: Iterable[bytes]) -> str:
    """SHA-256 of some parts, told apart."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def key_of(identity: Mapping[str, Any]) -> str:
    """The first 16 digits of a SHA-256 of settings, data and parent; settings that are off (``null``) have no part in
    it, so that an option which is new and off leaves every cell what it was.
    """
    settings = {name: value for name, value in identity["settings"].items() if value not in NONE}
    parts = (json.dumps(settings, sort_keys=True), identity["data"], identity.get("parent") or "")
    return digest(part.encode() for part in parts)[:16]
