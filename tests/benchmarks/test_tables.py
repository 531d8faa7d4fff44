"""What scripts make of answers and results: orderings of methods on two models, letters by number of choices."""

import json
from typing import Any

import pytest

from tests.conftest import REPOSITORY


def tier(**methods: list[float]) -> dict[str, dict[str, dict[str, float]]]:
    """Every score of methods, the same values for all; a value a seed."""
    values = {name: {str(seed): value for seed, value in enumerate(own)} for name, own in methods.items()}
    return dict.fromkeys(("target", "A_S_normalised", "H", "O"), values)


def test_a_pair_counts_as_clear_where_all_seeds_say_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from two_tiers import compare

    first = tier(a=[1, 2], b=[3, 4], c=[5, 0], only_here=[9, 9])
    second = tier(a=[10, 20], b=[30, 40], c=[0, 1], d=[1, 1])
    side_by_side, agreement = compare(first, second)
    assert [row[0] for row in side_by_side.rows] == ["a", "b", "c"]
    # a < b on both, and clear; c is last on the second, and its seeds disagree on the first.
    told: list[Any] = agreement.rows[0]
    assert told[0] == "target"
    assert told[1] == pytest.approx(0.5)  # ranks 1, 3, 2 and 2, 3, 1
    assert told[2:] == ["2 of 3", "1 of 1"]


def test_methods_are_ordered_by_the_seeds_that_they_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from two_tiers import means, order

    # By its own seeds b is higher, by the one that both have it is lower; of one seed nothing is clear.
    assert order({"1": 5.0, "2": 0.0}, {"1": 4.0}) == (1, False)
    assert order({"1": 5.0, "2": 3.0}, {"1": 4.0, "2": 2.0}) == (1, True)
    assert order({"1": 4.0, "2": 3.0}, {"1": 4.0, "2": 2.0}) == (1, False)  # equal with one seed
    assert order({"1": 4.0, "2": 2.0}, {"1": 2.0, "2": 4.0}) == (0, False)
    assert order({"1": 4.0}, {"2": 2.0}) == (0, False)
    assert means({"a": {"1": 5.0, "2": 0.0}, "b": {"1": 4.0}}, ["a", "b"]) == [5.0, 4.0]
    assert means({"a": {"1": 5.0}, "b": {"2": 4.0}}, ["a", "b"]) == []


def test_both_choices_of_rates_stand_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from study_pages import choices, view_of

    view = view_of("studies/spider/methods.yaml")
    table = choices([view, view])
    assert table.head == ["target", "method", *["rate by target", "H by target", "O by target"] * 2]
    kept = json.loads((REPOSITORY / "benchmarks/results/studies/spider_methods.json").read_text())
    labels = {"target": "scienceqa", "method": "spider"}
    (rate,) = (one["chosen"] for one in kept["rates"] if one["labels"] == labels)
    runs = [one["summary"]["tradeoff"] for one in kept["cells"] if labels.items() <= one["labels"].items()]
    (row,) = (row for row in table.rows if row[:2] == ["scienceqa", "spider"])
    assert row[2] == row[5] == f"{rate:g}"
    for score, told in zip("HOHO", (row[3], row[4], row[6], row[7]), strict=True):
        assert told.values == [run[score] for run in runs]
    merged = next(row for row in table.rows if row[1] == "wise_ft")
    assert merged[2] is None
    assert merged[3].values


def test_exercises_are_counted_by_kind_and_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    from letters import shares

    rows: list[dict[str, Any]] = [
        {"question": "Where is egg? A.egg, B.sea", "answer": "A", "score": 1.0},
        {"question": "Where is sea? A.egg, B.sea", "answer": "B", "score": 0.0},
        {"question": "What is choice C? A.egg, B.sea, C.sun", "answer": "sun", "score": 1.0},
    ]
    assert shares(rows) == {
        "letter, 2 choices": {"samples": 2, "right": 50.0},
        "text, 3 choices": {"samples": 1, "right": 100.0},
    }
