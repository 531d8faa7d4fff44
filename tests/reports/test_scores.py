"""Numbers of reports against hand-computed ones, textbooks and simulation."""

import math
import random
import statistics

import numpy as np
import pytest
import torch
from torchmetrics.functional import spearman_corrcoef

from mllm_lit.metrics import tradeoff
from mllm_lit.reports.scores import (
    ReportError,
    lower_is_better,
    over_samples,
    over_seeds,
    pareto,
    rank_correlation,
    score_of,
    student,
    verdicts,
)
from mllm_lit.studies.results import Result
from mllm_lit.studies.study import Claim
from tests.reports.toy import summary_of, validation

DURING = [
    validation(2, 0.9, 20, 80),
    validation(4, 0.3, 30, 70),
    validation(6, 0.3, 40, 60),
    validation(8, 0.8, 50, 50),
]
SUMMARY = summary_of(60.0, {"source": 30.0}, during=DURING)


@pytest.mark.parametrize(
    ("score", "at", "expected"),
    [
        ("target", "end", 60.0),
        ("toy", "end", 60.0),
        ("source", "end", 30.0),
        ("A_S", "end", 30.0),
        ("H", "end", 40.0),
        ("toy.accuracy/red", "end", 30.0),
        ("source.nll", "end", 0.5),
        ("target", "least", 30.0),
        ("source", "least+1", 60.0),
        ("toy.nll", "least+2", 0.8),
        ("O", "least", 50.0),
        ("target", "epoch 1", 30.0),
        ("source", "epoch 2", 50.0),
        ("H", "least", tradeoff(30.0, [70.0])["H"]),
    ],
)
def test_a_score_is_found_by_its_name(score: str, at: str, expected: float) -> None:
    assert score_of(SUMMARY, score, at) == pytest.approx(expected)


def test_what_is_not_there_is_named() -> None:
    with pytest.raises(ReportError, match=r"no score 'vqa'; there are target, toy, source, A_S.*source\.nll"):
        score_of(SUMMARY, "vqa")
    with pytest.raises(ReportError, match=r"'least\+3'.*least at validation 2 of 4"):
        score_of(SUMMARY, "target", "least+3")
    with pytest.raises(ReportError, match=r"'epoch 3'; the run was validated at epochs \[0.5, 1.0, 1.5, 2.0\]"):
        score_of(SUMMARY, "target", "epoch 3")
    with pytest.raises(ReportError, match="was not validated"):
        score_of(summary_of(60.0, {}), "target", "least")
    with pytest.raises(ReportError, match="no score 'A_S'"):
        score_of(summary_of(60.0, {}), "A_S")


def test_nll_and_chair_are_better_low() -> None:
    chair = summary_of(60.0, {"pope": 30.0})
    chair["sources"]["pope"]["metric"] = "chair_i"
    for score, lower in (("toy.nll", True), ("pope", True), ("toy", False), ("target", False), ("pope.chair_s", True)):
        assert lower_is_better(score, [chair]) is lower


# Two-sided 95 % points of Student's distribution, NIST/SEMATECH e-Handbook, 1.3.6.7.2.
@pytest.mark.parametrize(
    ("freedom", "point"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (9, 2.262), (10, 2.228), (100, 1.984)]
)
def test_students_points_are_those_of_the_textbook(freedom: int, point: float) -> None:
    assert round(student(freedom), 3) == point


def test_a_paired_difference_over_seeds() -> None:
    found = over_seeds({"1": 11.0, "2": 22.0, "3": 33.0, "9": 0.0}, {"3": 30.0, "1": 10.0, "2": 20.0})
    assert found is not None
    half = 4.302652729911275 * statistics.stdev([1, 2, 3]) / math.sqrt(3)
    assert (found.mean, found.low, found.high, found.pairs) == pytest.approx((2.0, 2 - half, 2 + half, 3))
    assert found.told is False
    alone = over_seeds({"1": 5.0}, {"1": 3.0})
    assert alone is not None
    assert (alone.mean, alone.low, alone.told) == (2.0, None, None)
    assert over_seeds({"1": 5.0}, {"2": 3.0}) is None


def test_equals_of_three_seeds_are_told_apart_in_one_of_twenty_cases() -> None:
    draws = np.random.default_rng(0).normal(size=(4000, 3))
    found = [over_seeds(dict(zip("123", map(float, draw), strict=True)), dict.fromkeys("123", 0.0)) for draw in draws]
    rate = np.mean([one is not None and bool(one.told) for one in found])
    assert abs(rate - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 4000)  # four standard errors of a share


def test_a_paired_difference_over_samples_is_that_of_a_bootstrap() -> None:
    generator = np.random.default_rng(1)
    one, other = generator.integers(0, 2, 300).astype(float), generator.choice([0.0, 0.3, 0.6, 1.0], 300)
    found = over_samples(list(one), list(other))
    differences = 100 * (one - other)
    drawn = differences[generator.integers(0, 300, (10_000, 300))].mean(1)
    assert found.mean == pytest.approx(differences.mean())
    # A quantile of 10,000 draws has a standard error of 0.027 standard deviations at 2.5 %; two of them are compared.
    near = 5 * math.sqrt(2) * 0.027 * drawn.std()
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(drawn, (0.025, 0.975))), abs=near)
    assert over_samples(list(one), list(other)) == found


def test_rank_correlation_is_that_of_torchmetrics() -> None:
    draw = random.Random(3)
    for size in (2, 5, 40):
        pairs = [(float(draw.randint(0, 9)), draw.random()) for _ in range(size)]
        expected = spearman_corrcoef(*(torch.tensor(side, dtype=torch.float64) for side in zip(*pairs, strict=True)))
        assert rank_correlation(pairs) == pytest.approx(float(expected), abs=1e-4), "it adds 1e-6 to deviations"
    assert rank_correlation([]) is rank_correlation([(1.0, 2.0)]) is rank_correlation([(1.0, 2.0), (1.0, 3.0)]) is None


def test_pareto() -> None:
    points = {"best of y": (1.0, 3.0), "middle": (2.0, 2.0), "beaten": (1.0, 2.0), "twin": (2.0, 2.0)}
    assert pareto(points) == ["best of y", "middle", "twin"]


def cell(method: str, task: str, seed: str, target: float) -> Result:
    return Result("k", {"method": method, "task": task, "seed": seed}, summary_of(target, {"source": 50.0}))


CELLS = [
    *(cell("spider", "a", str(seed), value) for seed, value in enumerate((50.0, 60.0))),
    *(cell("full", "a", str(seed), value) for seed, value in enumerate((40.0, 45.0))),
    *(cell("spider", "b", str(seed), value) for seed, value in enumerate((50.0, 40.0))),
    *(cell("full", "b", str(seed), value) for seed, value in enumerate((45.0, 40.0))),
]


def test_a_claim_is_held_against_every_value_that_it_does_not_name() -> None:
    claim = Claim("SPIDER learns more", "a paper", {"method": "spider"}, {"method": "full"})
    found = [(one.where, one.difference.mean, one.shows, one.word) for one in verdicts(claim, CELLS)]
    assert found == [({"task": "a"}, 12.5, 2, "yes"), ({"task": "b"}, 2.5, 1, "mixed")]  # equal scores show nothing
    other = Claim("a is easier", "nobody", {"task": "b", "method": "spider"}, {"task": "a"})
    assert [(one.where, one.word) for one in verdicts(other, CELLS)] == [
        ({"method": "spider"}, "no"),
        ({"method": "full"}, "mixed"),
    ]
    assert verdicts(Claim("x", "y", {"method": "lora"}, {"method": "full"}), CELLS) == []
