"""Numbers of reports: a run's scores by name, means over seeds, paired differences, verdicts, the Pareto front."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mllm_lit.errors import UserError

if TYPE_CHECKING:
    from mllm_lit.studies.results import Result
    from mllm_lit.studies.study import Claim, Labels

SEED = "seed"
RESAMPLES = 10_000
Summary = Mapping[str, Any]
"""The content of a ``summary.json``."""


class ReportError(UserError, ValueError):
    """Something cannot be reported; the message says what is missing and where."""


# ---- scores of a run ----------------------------------------------------------------------------------------------


def sets_of(summary: Summary) -> dict[str, dict[str, Any]]:
    """Name -> row of the target, the sources and other sets."""
    return {summary["target"]["name"]: summary["target"], **summary["sources"], **summary.get("others", {})}


def scores_of(summary: Summary, at: str = "end") -> dict[str, float]:
    """All scores of a run that :func:`score_of` knows, by name.

    Raises:
        ReportError: The run has no such evaluation.
    """
    rows = sets_of(summary)
    if at == "end":
        told: Mapping[str, Mapping[str, float]] = summary.get("scores", {}).get("after", {})
        heads = {name: row["after"] for name, row in rows.items()}
        trade: Mapping[str, float | None] = (summary["tradeoff"] or {}) | {"kl_to_before": summary.get("kl_to_before")}
    else:
        told = validation(summary, at)["scores"]
        heads = {name: told[name][row["metric"]] for name, row in rows.items() if name in told}
        trade = _tradeoff(summary, heads)
    found = {"target": heads[summary["target"]["name"]], **heads}
    found |= {name: value for name, value in trade.items() if value is not None}
    return found | {f"{name}.{key}": value for name, scores in told.items() for key, value in scores.items()}


def score_of(summary: Summary, score: str, at: str = "end") -> float:
    """One score of a run.

    Args:
        summary: Its ``summary.json``.
        score: ``target``, ``A_S``, ``A_T``, ``H``, ``O``, a set's name (its headline score), or ``SET.METRIC``, such as
            ``gqa.nll`` or ``scienceqa.accuracy/NAT``; ``kl_to_before`` where an objective has kept what it takes.
        at: ``end`` is the evaluation after training. ``least`` is the validation during training at which the target's
            NLL is least (the first of equal ones), ``least+2`` the second one behind it, ``epoch 3`` the one after
            three epochs; scores are then of the validation's samples.

    Raises:
        ReportError: The run has no such score or evaluation.
    """
    found = scores_of(summary, at)
    if score not in found:
        raise ReportError(f"There is no score {score!r}; there are {', '.join(found)}.")
    return found[score]


def validation(summary: Summary, at: str) -> Mapping[str, Any]:
    """The validation that ``least``, ``least+K`` or ``epoch N`` names.

    Raises:
        ReportError: There is none.
    """
    during, target = summary.get("during") or [], summary["target"]["name"]
    if not during:
        raise ReportError(f"There is no evaluation {at!r}: the run was not validated while it trained.")
    if at.startswith("epoch "):
        there = {round(one["epoch"], 6): one for one in during}
        if float(at.removeprefix("epoch ")) not in there:
            raise ReportError(f"There is no evaluation {at!r}; the run was validated at epochs {[*there]}.")
        return there[float(at.removeprefix("epoch "))]
    place = least(during, target) + int(at.partition("+")[2] or 0)
    if place >= len(during):
        raise ReportError(
            f"There is no evaluation {at!r}: the target's NLL is least at validation {least(during, target) + 1} of "
            f"{len(during)}. Train longer, or validate more often."
        )
    found: Mapping[str, Any] = during[place]
    return found


def least(during: Sequence[Mapping[str, Any]], target: str) -> int:
    """The place of the validation at which the target's NLL is least, the first of equal ones."""
    return min(range(len(during)), key=lambda place: during[place]["scores"][target]["nll"])


def lower_is_better(score: str, summaries: Iterable[Summary]) -> bool:
    """Whether a score counts mistakes: NLL and CHAIR."""
    if "." not in score or score in {name for summary in summaries for name in sets_of(summary)}:
        metrics = {str(sets_of(summary).get(score, {}).get("metric", "")) for summary in summaries}
    else:
        metrics = {score.rpartition(".")[2]}
    return any(metric == "nll" or metric.startswith("chair") for metric in metrics)


def _tradeoff(summary: Summary, heads: Mapping[str, float]) -> dict[str, float]:
    from mllm_lit.metrics import tradeoff

    sources = [heads[name] for name in summary["sources"]]
    return tradeoff(heads[summary["target"]["name"]], sources) if sources else {}


# ---- over seeds ---------------------------------------------------------------------------------------------------


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and unbiased standard deviation; ``None`` of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


@dataclass(frozen=True)
class Difference:
    """The mean of paired differences.

    Attributes:
        mean: In points.
        low: End of the 95 % interval; ``None`` where one pair alone tells nothing of it.
        high: Likewise.
        pairs: How many seeds, or samples, it is of.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    @property
    def told(self) -> bool | None:
        """Whether the two can be told apart: 0 is outside the interval; ``None`` where there is no interval."""
        return None if self.low is None or self.high is None else self.low > 0 or self.high < 0


def over_seeds(one: Mapping[str, float], other: Mapping[str, float]) -> Difference | None:
    """``one`` - ``other``, seed by seed, with Student's interval; ``None`` if they have no seed in common.

    A bootstrap would be too sure: means of three resampled differences never leave the range of the three, so its
    interval leaves out 0 whenever they have one sign, as those of equals have one time in four.
    """
    differences = [one[seed] - other[seed] for seed in one if seed in other]
    if not differences:
        return None
    mean, sd = mean_sd(differences)
    if sd is None:
        return Difference(mean, None, None, 1)
    half = student(len(differences) - 1) * sd / math.sqrt(len(differences))
    return Difference(mean, mean - half, mean + half, len(differences))


def over_samples(one: Sequence[float], other: Sequence[float], seed: int = 0) -> Difference:
    """``one`` - ``other`` in points, sample by sample, with a bootstrap's percentile interval.

    Args:
        one: Each sample's score in [0, 1].
        other: Likewise, in the same order.
        seed: Of the resampling.
    """
    import numpy as np

    # Scores are few numbers, so how often a resample has each is drawn, in place of every sample.
    values, counts = np.unique(100 * (np.asarray(one) - np.asarray(other)), return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(one), counts / len(one), RESAMPLES) @ values / len(one)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Difference(float(values @ counts) / len(one), float(low), float(high), len(one))


def student(freedom: int, share: float = 0.95) -> float:
    """How many standard errors around a mean hold a share of Student's distribution.

    The finite sums of Abramowitz and Stegun, 26.7.3 and 26.7.4, solved for the angle by bisection.

    >>> round(student(2), 3), round(student(9), 3)
    (4.303, 2.262)
    """

    def held(angle: float) -> float:
        term, total = (math.cos(angle), 0.0) if freedom % 2 else (1.0, 0.0)
        for k in range(1 + freedom % 2, freedom, 2):
            total += term
            term *= k / (k + 1) * math.cos(angle) ** 2
        total *= math.sin(angle)
        return 2 / math.pi * (angle + total) if freedom % 2 else total

    low, high = 0.0, math.pi / 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if held(middle) < share else (low, middle)
    return math.sqrt(freedom) * math.tan(low)


BEST, NEAR = "best", "near"


def best_of(rows: Mapping[Any, Mapping[str, float]], lower: bool = False) -> Any:
    """The row of the best mean, the first of equal ones; ``None`` of no rows.

    Args:
        rows: Row -> seed -> score.
        lower: Small scores are good.
    """
    means = {row: statistics.fmean(values.values()) for row, values in rows.items() if values}
    return (min if lower else max)(means, key=lambda row: means[row]) if len(means) > 1 else None


def rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    """Spearman's, equal values taking the mean of their ranks; ``None`` where one side has no two different values.

    >>> round(rank_correlation([(1, 10), (2, 30), (3, 20), (3, 40)]), 3)
    0.632
    """

    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(other < one for other in values) + sum(other == one for other in values) / 2 for one in values]

    sides = [ranks(side) for side in zip(*pairs, strict=True)]
    if any(len(set(side)) < 2 for side in sides) or not sides:
        return None
    return statistics.correlation(*sides)


# ---- over rows ----------------------------------------------------------------------------------------------------


def pareto(points: Mapping[Any, tuple[float, float]]) -> list[Any]:
    """Names of the points of which no other is at least as good in both coordinates and better in one.

    >>> pareto({"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (1.0, 2.0)})
    ['a', 'b']
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())

    return [name for name, (x, y) in points.items() if not beaten(x, y)]


@dataclass(frozen=True)
class Verdict:
    """What a study says of a claim, for two of its rows.

    Attributes:
        where: Labels of the axes that the claim does not name.
        difference: The one that is said to score higher less the other, seed by seed.
        shows: Seeds that show what was said.
    """

    where: "Labels"
    difference: Difference
    shows: int

    @property
    def word(self) -> str:
        """``yes`` or ``no`` where all seeds agree, else ``mixed``."""
        return {self.difference.pairs: "yes", 0: "no"}.get(self.shows, "mixed")


def verdicts(claim: "Claim", cells: Sequence["Result"]) -> list[Verdict]:
    """A claim held against a study, for all pairs of rows with equal labels on the axes that it does not name."""
    named = {*claim.higher, *claim.lower, SEED}
    higher, lower = ({}, {})  # type: tuple[dict[Any, dict[str, float]], dict[Any, dict[str, float]]]
    for rows, rule in ((higher, claim.higher), (lower, claim.lower)):
        for cell in cells:
            if rule.items() <= cell.labels.items():
                row = tuple((axis, label) for axis, label in cell.labels.items() if axis != SEED)
                rows.setdefault(row, {})[seed_of(cell)] = score_of(cell.summary, claim.score)
    found = []
    for one, ours in higher.items():
        for other, theirs in lower.items():
            rest, same = ({a: label for a, label in row if a not in named} for row in (one, other))
            difference = over_seeds(ours, theirs)
            if rest == same and difference is not None:
                rules = ((one, claim.higher), (other, claim.lower))
                free = {axis: label for row, rule in rules for axis, label in row if axis not in rule}
                found.append(Verdict(free, difference, sum(ours[s] > theirs[s] for s in ours if s in theirs)))
    return found


def seed_of(cell: "Result") -> str:
    """A cell's seed."""
    return str(cell.labels.get(SEED, cell.summary.get("seed", "")))
