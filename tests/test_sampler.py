"""The order of training rows."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_lit.data.sampler import TrainBatchSampler


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    batch=st.integers(1, 7),
    world=st.integers(1, 4),
    window=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_every_row_once_and_ranks_in_step(rows: int, batch: int, world: int, window: int, seed: int) -> None:
    lengths = [(7 * i) % 13 for i in range(rows)]
    ranks = [list(TrainBatchSampler(lengths, batch, seed, r, world, window)) for r in range(world)]
    assert {len(r) for r in ranks} == {len(TrainBatchSampler(lengths, batch, seed, 0, world, window))}
    assert all(batch_rows for r in ranks for batch_rows in r), "a rank without a row would hang the others"
    seen = sorted(i for r in ranks for batch_rows in r for i in batch_rows)
    assert set(seen) == set(range(rows))
    assert len(seen) - rows < world


def test_order_changes_with_the_epoch_and_the_seed_only() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        sampler = TrainBatchSampler(list(range(40)), 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert order(1, 0) != order(1, 1)
    assert order(1, 0) != order(2, 0)


def test_skip_continues_where_it_stopped_and_only_once() -> None:
    whole = list(TrainBatchSampler(list(range(40)), 4, 3))
    sampler = TrainBatchSampler(list(range(40)), 4, 3)
    sampler.skip(6)
    assert list(sampler) == whole[6:]
    assert list(sampler) == whole


def test_rows_of_a_batch_have_similar_lengths() -> None:
    lengths = [i % 50 for i in range(400)]

    def spread(window: int) -> int:
        return sum(
            max(lengths[i] for i in b) - min(lengths[i] for i in b)
            for b in TrainBatchSampler(lengths, 8, 0, window=window)
        )

    assert spread(16) < spread(1) / 4


def test_a_batch_size_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"batch_size is 0"):
        TrainBatchSampler([1, 2], 0, 0)
