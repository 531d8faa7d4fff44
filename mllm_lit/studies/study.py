"""What a study file says: options that all runs have, axes along which they differ, and what is to be shown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import yaml

from mllm_lit.errors import HIGHEST_SEED, UserError

SEED = "seed"
"""The axis over which means are taken; its option is ``seed_everything``."""
STAGE = "stage"
"""The axis of a sequence of tasks, in the order of the file."""
EARLIER = "earlier"
"""As the value of a stage's option: the names of the stages before it. At the first stage the option is left out."""
TRADEOFF = ("A_S", "A_T", "H", "O")

Labels = dict[str, str]
"""Axis -> label of a value."""
Options = dict[str, Any]
"""Options of ``tools/fit.py`` by dotted name, without dashes."""
Rate = Annotated[float, msgspec.Meta(gt=0)]
Rates = Annotated[list[Rate], msgspec.Meta(min_length=1)]
Name = Annotated[str, msgspec.Meta(pattern=r"^[\w-]+$")]


class StudyError(UserError, ValueError):
    """A study file cannot be used; the message names the file, the key, what was found and what is expected."""


class Choice(msgspec.Struct, forbid_unknown_fields=True):
    """How a learning rate is chosen: each is trained once, and the one with the best score is taken.

    Attributes:
        option: What the rate is the value of.
        rates: To choose from, unless a value of an axis brings its own; one alone is taken as it is.
        options: Of the runs that choose: the split they are scored on, and a seed of their own.
        by: Axes along which it is chosen anew; other axes have no part in it. ``None`` for all but the seed's.
        score: What is compared; of equal scores the smallest rate is taken.
    """

    option: str = "model.adapter.lr"
    rates: Rates | None = None
    options: Options = {}
    by: list[str] | None = None
    score: Literal["target", "A_S", "A_T", "H", "O"] = "target"


class Claim(msgspec.Struct, forbid_unknown_fields=True):
    """What is said of two groups of runs: that one scores higher than the other, seed by seed.

    Attributes:
        says: The claim.
        source: Where it was made.
        higher: Labels of the runs that are said to score higher.
        lower: Of the others; axes that neither names are compared value by value.
        score: See :func:`mllm_lit.reports.scores.score_of`.
    """

    says: str
    source: str
    higher: Labels
    lower: Labels
    score: str = "target"


class Shown(msgspec.Struct, forbid_unknown_fields=True):
    """A table of the report: one score, an axis' values side by side.

    Attributes:
        score: See :func:`mllm_lit.reports.scores.score_of`.
        columns: The axis whose values are columns; with a mean over them where there are several.
        title: Above it.
        at: The evaluation that is shown: the last one, the one at which the target's validation NLL is least, so
            many behind that (``least+2``), or that of an epoch (``epoch 3``).
    """

    score: str
    columns: str
    title: str = ""
    at: Annotated[str, msgspec.Meta(pattern=r"^(end|least(\+\d+)?|epoch \d+)$")] = "end"


class Correlation(msgspec.Struct, forbid_unknown_fields=True):
    """Whether one score goes with another: Spearman's rank correlation, over runs and over means of rows.

    Attributes:
        score: See :func:`mllm_lit.reports.scores.score_of`.
        by: The other score.
        columns: The axis within whose values it is computed.
        title: Above the table.
    """

    score: str
    by: str
    columns: str
    title: str = ""


class Spread(msgspec.Struct, forbid_unknown_fields=True):
    """How much a score differs along axes, for each combination of the others.

    Attributes:
        score: See :func:`mllm_lit.reports.scores.score_of`.
        over: The axes; that of the seeds may be one.
        title: Above the table.
    """

    score: str
    over: Annotated[list[str], msgspec.Meta(min_length=1)]
    title: str = ""


class Wins(msgspec.Struct, forbid_unknown_fields=True):
    """How often each value of an axis does better than some of them, in pairs of runs that are else alike.

    Attributes:
        scores: See :func:`mllm_lit.reports.scores.score_of`.
        axis: Whose values are compared.
        over: Labels of the values that are to be beaten.
        title: Above the table.
    """

    scores: Annotated[list[str], msgspec.Meta(min_length=1)]
    axis: str
    over: Annotated[list[str], msgspec.Meta(min_length=1)]
    title: str = ""


class Paper(msgspec.Struct, forbid_unknown_fields=True):
    """Figures of a paper, shown beside those of the study.

    Attributes:
        title: What and where they are.
        rows: Row -> column -> figure.
    """

    title: str
    rows: dict[str, dict[str, float | str]]


class StudyFile(msgspec.Struct, forbid_unknown_fields=True):
    """The keys of a study file; see ``docs/studies.md``."""

    name: Name
    question: str
    options: Options = {}
    axes: dict[str, dict[str, Options] | list[Any]] = {}
    zip: list[list[str]] = []
    exclude: list[dict[str, str | list[str]]] = []
    rate: Choice | None = None
    stages: dict[Name, Options] = {}
    start: Literal["keep", "merge"] = "keep"
    claims: list[Claim] = []
    tables: list[Shown] = []
    correlations: list[Correlation] = []
    spreads: list[Spread] = []
    wins: list[Wins] = []
    paper: list[Paper] = []
    slurm: Options = {}


@dataclass(frozen=True)
class Merge:
    """A merge of a finished run.

    Attributes:
        of: Label of the merged run's value on the same axis.
        method: A key of ``MERGES``.
        arguments: Of it, as YAML.
        point: Of a sweep, the point that stands for it.
    """

    of: str
    method: str
    arguments: str
    point: str


@dataclass(frozen=True)
class Value:
    """A value of an axis: options, and learning rates of its own or a merge of another value's runs; SLURM's."""

    options: Options
    rates: tuple[float, ...] | None = None
    merge: Merge | None = None
    slurm: Options = field(default_factory=dict)


@dataclass(frozen=True)
class Study:
    """A study file, read.

    Attributes:
        file: Its content.
        axes: Axis -> label -> value.
    """

    file: StudyFile
    axes: Mapping[str, Mapping[str, Value]]

    @property
    def rows(self) -> list[str]:
        """The axes that tell the rows of the report apart: all but the seed's, the stages last."""
        return [axis for axis in self.axes if axis != SEED] + ([STAGE] if self.file.stages else [])

    def combinations(self) -> Iterator[Labels]:
        """Every combination of the axes that is not excluded; stages aside."""
        together = {axis: tuple(group) for group in self.file.zip for axis in group}
        groups = list(dict.fromkeys(together.get(axis, (axis,)) for axis in self.axes))
        steps = [list(zip(*(self.axes[axis] for axis in group), strict=True)) for group in groups]
        for places in product(*steps):
            pairs = [pair for group, at in zip(groups, places, strict=True) for pair in zip(group, at, strict=True)]
            labels = dict(sorted(pairs, key=lambda pair: list(self.axes).index(pair[0])))
            if not any(matches(labels, rule) for rule in self.file.exclude):
                yield labels

    def values(self, labels: Labels) -> list[Value]:
        """What a combination consists of, in the order of the axes."""
        return [self.axes[axis][label] for axis, label in labels.items() if axis in self.axes]


def matches(labels: Labels, rule: Mapping[str, str | Sequence[str]]) -> bool:
    """Whether labels are such as a rule names, a label or several an axis."""
    return all(labels.get(axis) in ([named] if isinstance(named, str) else named) for axis, named in rule.items())


def read_study(path: Path, overlays: Sequence[Path] = ()) -> Study:
    """Read a study file.

    Args:
        path: See ``configs/studies``.
        overlays: Files of the same keys that are laid over it, key by key; ``null`` takes a key out. One may serve
            several studies: what it says of axes and labels that the study does not have is left aside, but for labels
            under ``add``, which are new ones. Under ``replace`` stand option values and what takes their place. Where
            it takes out ``rate``, values have no rates either. Unless it has a name, its file's is put behind the
            study's: results of both are kept.

    Raises:
        StudyError: It is no YAML, a key is unknown or missing, or a value is not what the key takes.
    """
    content = _read(path)
    for overlay in overlays:
        content = _overlaid(content, {"name": f"{content.get('name')}_{overlay.stem}"} | _read(overlay))
    try:
        file = msgspec.convert(content, StudyFile, strict=False)
    except msgspec.ValidationError as error:
        raise StudyError(f"{path}: {error}. See docs/studies.md for the keys of a study.") from error
    study = Study(file, {axis: _values(axis, values) for axis, values in file.axes.items()})
    _check(study, path)
    return study


class _Loader(yaml.SafeLoader):  # type: ignore[misc]
    """Refuses a key that stands twice in one mapping, of which PyYAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [str(key.value) for key, _ in node.value]
        if repeated := [name for name in names if names.count(name) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"{repeated[0]!r} stands there twice", node.start_mark)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise StudyError(f"There is no file {path} (tried {path.absolute()}).") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise StudyError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise StudyError(f"{path} holds {type(content).__name__}, expected a mapping; see docs/studies.md.")
    return content


def _overlaid(content: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    replace, add, changes = (over.pop(key, None) or {} for key in ("replace", "add", "axes"))
    axes = content.get("axes", {})
    for axis in axes.keys() & changes.keys():
        if isinstance(axes[axis], dict):
            axes[axis] = _laid_over(
                axes[axis], {name: one for name, one in changes[axis].items() if name in axes[axis]}
            )
        else:
            axes[axis] = changes[axis]
    for axis in axes.keys() & add.keys():
        axes[axis] = axes[axis] | add[axis] if isinstance(axes[axis], dict) else [*axes[axis], *add[axis]]
    content = _laid_over(content, over)
    if "rate" in over and over["rate"] is None:
        for values in axes.values():
            for value in values.values() if isinstance(values, dict) else ():
                value.pop("rates", None)
    return _replaced(content, replace)


def _laid_over(below: Any, above: Any) -> Any:
    if not isinstance(below, dict) or not isinstance(above, dict):
        return above
    keys = {**below, **above}
    laid = {key: _laid_over(below.get(key), above[key]) if key in above else below[key] for key in keys}
    return {key: value for key, value in laid.items() if value is not None or key not in above}


def _replaced(content: Any, values: Mapping[Any, Any]) -> Any:
    if isinstance(content, dict):
        return {key: _replaced(value, values) for key, value in content.items()}
    if isinstance(content, list):
        return [_replaced(value, values) for value in content]
    return values.get(content, content)


def _values(axis: str, values: Mapping[str, Options] | Sequence[Any]) -> dict[str, Value]:
    if isinstance(values, Mapping):
        return {str(label): _value(f"axes.{axis}.{label}", options) for label, options in values.items()}
    option = "seed_everything" if axis == SEED else axis
    if axis == SEED and not all(type(seed) is int and 0 <= seed <= HIGHEST_SEED for seed in values):
        raise StudyError(f"axes.seed is {list(values)}, expected whole numbers from 0 to {HIGHEST_SEED}.")
    if axis != SEED and "." not in axis:
        raise StudyError(
            f"axes.{axis} is a list, so its name has to be the option that takes the values, such as "
            "model.adapter.rank; or give a mapping: label -> options."
        )
    found = {text(value): Value({option: value}) for value in values}
    if len(found) < len(values):
        raise StudyError(f"axes.{axis} has a value twice: {list(values)}.")
    return found


def _value(where: str, row: Options) -> Value:
    options = dict(row)
    merging = {key: options.pop(key) for key in ("merge", "of", "arguments", "point") if key in options}
    rates, slurm = options.pop("rates", None), options.pop("slurm", {})
    if rates is not None:
        try:
            rates = tuple(msgspec.convert(rates, Rates, strict=False))
        except msgspec.ValidationError as error:
            raise StudyError(f"{where}.rates: {error}.") from error
    if not merging:
        return Value(options, rates, slurm=slurm)
    if options or rates or not {"merge", "of"} <= merging.keys():
        raise StudyError(
            f"{where} has the keys {sorted(row)}; a merge has merge and of (the label of the runs that are merged), "
            "and may have arguments, point and slurm, but no options of a run."
        )
    from mllm_lit.merging.options import check_options, labels_of  # torch is imported for merges alone

    arguments = yaml.safe_dump(merging.get("arguments", {}), default_flow_style=True).strip()
    points = labels_of(merging["merge"], check_options(merging["merge"], arguments))
    if (point := merging.get("point", merging["merge"])) not in points:
        raise StudyError(f"{where}.point is {point!r}, expected one of {', '.join(map(repr, points))}.")
    merge = Merge(str(merging["of"]), merging["merge"], arguments, point)
    return Value({}, None, merge, slurm)


def text(value: Any) -> str:
    """A value as the command line takes it: a word as it is, anything else as YAML in one line.

    >>> text(5.0e-4), text(1.0), text(1), text([1.0, "a"])  # a val_check_interval of 1.0 is an epoch, of 1 a batch
    ('0.0005', '1.0', '1', '[1.0, a]')
    """
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        short = f"{value:g}"
        return f"{short}.0" if short.lstrip("-").isdigit() else short
    return yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()


def _check(study: Study, path: Path) -> None:
    file, axes = study.file, study.axes

    def known(where: str, names: Sequence[str], rules: Mapping[str, str | Sequence[str]] | None = None) -> None:
        there = {**axes, STAGE: file.stages} if file.stages else axes
        if unknown := [name for name in names if name not in there]:
            raise StudyError(f"{path}: {where} names the axis {unknown[0]!r}; the axes are {', '.join(there)}.")
        for axis, named in (rules or {}).items():
            for label in [named] if isinstance(named, str) else named:
                if label not in there[axis]:
                    raise StudyError(f"{path}: {where} names {axis}: {label}; there are {', '.join(there[axis])}.")

    for group in file.zip:
        known("zip", group)
        if len(lengths := {len(axes[axis]) for axis in group}) > 1:
            raise StudyError(f"{path}: zip: the axes {', '.join(group)} have {sorted(lengths)} values, not as many.")
    for rule in file.exclude:
        known("exclude", list(rule), rule)
    if file.rate is not None:
        known("rate.by", file.rate.by or [])
    for claim in file.claims:
        known(f"the claim {claim.says!r}", [*claim.higher, *claim.lower], claim.higher)
        known(f"the claim {claim.says!r}", [], claim.lower)
    for table in file.tables:
        known(f"the table of {table.score}", [table.columns])
    for one in file.correlations:
        known(f"the correlation of {one.score}", [one.columns])
        if one.columns == SEED:
            raise StudyError(f"{path}: the correlation of {one.score} is over seeds, so columns: seed cannot be had.")
    for spread in file.spreads:
        known(f"the spread of {spread.score}", spread.over)
    for count in file.wins:
        what = f"wins of {', '.join(count.scores)}"
        known(what, [count.axis], {count.axis: count.over})
        if count.axis == SEED:
            raise StudyError(f"{path}: {what} are counted over seeds, so axis: seed cannot be had.")
    for axis, values in axes.items():
        for label, value in values.items():
            merge = value.merge
            if merge is not None and (merge.of not in values or values[merge.of].merge is not None):
                raise StudyError(f"{path}: axes.{axis}.{label}: of: {merge.of} is no trained value of this axis.")
            if merge is not None and file.stages:
                raise StudyError(f"{path}: axes.{axis}.{label}: a sequence has no merges; set start: merge instead.")
            if value.rates is not None and file.rate is None:
                raise StudyError(f"{path}: axes.{axis}.{label} has rates, but the study does not say rate: (what for).")
    merging = [axis for axis, values in axes.items() if any(value.merge for value in values.values())]
    if len(merging) > 1:
        raise StudyError(f"{path}: the axes {', '.join(merging)} have merges; put all of them on one.")
    for combination in study.combinations():
        for axis, label in combination.items():
            merge = axes[axis][label].merge
            if merge is not None and any(matches(combination | {axis: merge.of}, rule) for rule in file.exclude):
                raise StudyError(f"{path}: {combination} merges runs that exclude leaves out.")
    if not any(True for _ in study.combinations()):
        raise StudyError(f"{path}: every combination of the axes is excluded.")
