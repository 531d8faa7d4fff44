"""Subsets are seeded, nested, in order, and refuse what is not there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_lit.data.sample import Sample
from mllm_lit.data.subset import subset
from mllm_lit.tasks import DatasetError

ROWS = [Sample.single_turn(f"r{i}", "?", "x") for i in range(100)]


def _ids(samples: list[Sample]) -> list[str]:
    return [sample.id for sample in samples]


@given(st.integers(1, 100), st.integers(1, 100), st.integers(0, 5))
def test_random_subsets_are_nested_and_in_order(small: int, large: int, seed: int) -> None:
    small, large = sorted((small, large))
    few, many = (_ids(subset(ROWS, max_samples=count, seed=seed)) for count in (small, large))
    assert (len(few), len(many)) == (small, large)
    assert set(few) <= set(many)
    assert many == [row for row in _ids(ROWS) if row in set(many)]


def test_choice_depends_on_seed_and_ids_but_not_on_the_order_of_the_file() -> None:
    chosen = _ids(subset(ROWS, max_samples=10, seed=1))
    assert set(chosen) == set(_ids(subset(ROWS[::-1], max_samples=10, seed=1)))
    assert chosen != _ids(subset(ROWS, max_samples=10, seed=2))


def test_fraction_and_its_combination_with_a_limit() -> None:
    assert len(subset(ROWS, fraction=0.25)) == 25
    assert len(subset(ROWS, fraction=0.001)) == 1
    assert len(subset(ROWS, fraction=0.5, max_samples=7)) == 7
    assert subset(ROWS, max_samples=1000) == ROWS == subset(ROWS)


def test_rows_by_name() -> None:
    assert _ids(subset(ROWS, ids=["r7", "r3"])) == ["r3", "r7"]
    with pytest.raises(DatasetError, match=r"2 of the 3 ids are not in this split, such as \['x', 'y'\]"):
        subset(ROWS, ids=["r7", "x", "y"])
    with pytest.raises(DatasetError, match="not both"):
        subset(ROWS, ids=["r7"], max_samples=3)


@pytest.mark.parametrize("wrong", [{"max_samples": 0}, {"fraction": 0.0}, {"fraction": 1.5}])
def test_arguments_out_of_range(wrong: dict[str, float]) -> None:
    with pytest.raises(DatasetError, match=f"{next(iter(wrong))} is"):
        subset(ROWS, **wrong)  # type: ignore[arg-type]
