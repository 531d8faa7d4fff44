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


def rows_by_group(groups: list[int]) -> dict[int, set[int]]:
    found: dict[int, set[int]] = {}
    for row, group in enumerate(groups):
        found.setdefault(group, set()).add(row)
    return found


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 20), min_size=1, max_size=90),
    batch=st.integers(1, 9),
    world=st.integers(1, 4),
    budget=st.one_of(st.none(), st.integers(60, 400)),
    seed=st.integers(0, 99),
)
def test_groups_stay_whole_where_they_fit(
    groups: list[int], batch: int, world: int, budget: int | None, seed: int
) -> None:
    lengths = [30 + (7 * i) % 13 for i in range(len(groups))]
    shared = [20] * len(groups)

    def sampler(rank: int) -> TrainBatchSampler:
        packed = {"groups": groups, "shared": shared, "batch_tokens": budget, "padded": False}
        return TrainBatchSampler(lengths, batch, seed, rank, world, **packed)  # type: ignore[arg-type]

    def tokens(rows: list[int]) -> int:
        """Of a batch, what is shared counted once a group."""
        return sum(lengths[i] - shared[i] for i in rows) + 20 * len({groups[i] for i in rows})

    for epoch in (0, 1):
        ranks = [sampler(rank) for rank in range(world)]
        for one in ranks:
            one.set_epoch(epoch)
        found = [list(one) for one in ranks]
        assert {len(batches) for batches in found} == {len(sampler(0))}, "as many in every epoch and on every rank"
        every = [rows for batches in found for rows in batches]
        seen = sorted(i for rows in every for i in rows)
        assert set(seen) == set(range(len(groups)))
        assert len(seen) - len(groups) < world
        for rows in every:
            assert rows
            assert len(rows) <= batch if budget is None else tokens(rows) <= budget
    if world == 1:
        for members in rows_by_group(groups).values():
            fits = len(members) <= batch if budget is None else tokens(sorted(members)) <= budget
            if fits:
                assert [rows for rows in every if members & set(rows)][0:] == [
                    rows for rows in every if members <= set(rows)
                ]


def test_batches_of_groups_are_full() -> None:
    groups = [i // (1 + i % 7) for i in range(2000)]
    batches = list(TrainBatchSampler([30] * 2000, 16, 0, groups=groups, shared=[20] * 2000))
    assert sum(map(len, batches)) / len(batches) > 0.97 * 16


def test_which_groups_meet_changes_with_the_epoch() -> None:
    sampler = TrainBatchSampler([30] * 200, 16, 0, groups=[i // 5 for i in range(200)], shared=[20] * 200)
    first = {frozenset(rows) for rows in sampler}
    sampler.set_epoch(1)
    assert len(first & {frozenset(rows) for rows in sampler}) < len(first) / 2


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 120), min_size=1, max_size=80),
    budget=st.integers(120, 700),
    world=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_a_budget_counts_the_padding(lengths: list[int], budget: int, world: int, seed: int) -> None:
    for epoch in (0, 1):
        every: list[list[int]] = []
        for rank in range(world):
            sampler = TrainBatchSampler(lengths, 1, seed, rank, world, batch_tokens=budget)
            sampler.set_epoch(epoch)
            every += list(sampler)
        assert {i for rows in every for i in rows} == set(range(len(lengths)))
        assert all(len(rows) * max(lengths[i] for i in rows) <= budget for rows in every)


@pytest.mark.parametrize("length", [20, 130])
@pytest.mark.parametrize("padded", [True, False])
def test_a_budget_is_used_to_the_full(length: int, padded: bool) -> None:
    batches = list(TrainBatchSampler([length] * 4000, 1, 0, batch_tokens=8192, padded=padded))
    assert max(map(len, batches)) == 8192 // length
    assert sum(map(len, batches)) / len(batches) > 0.9 * (8192 // length)


def test_a_long_row_among_short_ones_pads_little() -> None:
    lengths = [3000 if i % 20 == 0 else 50 for i in range(1000)]
    batches = list(TrainBatchSampler(lengths, 1, 0, batch_tokens=4096))
    held = sum(len(rows) * max(lengths[i] for i in rows) for rows in batches)
    assert held < 1.05 * sum(lengths)


@pytest.mark.parametrize(("batch", "world"), [(8, 2), (4, 4)])
def test_rows_alone_are_in_the_same_steps_whatever_the_ranks(batch: int, world: int) -> None:
    lengths = [(7 * i) % 31 for i in range(97)]

    def steps(size: int, ranks: int) -> list[set[int]]:
        parts = [list(TrainBatchSampler(lengths, size, 3, rank, ranks)) for rank in range(ranks)]
        return [{i for rows in step for i in rows} for step in zip(*parts, strict=True)]

    assert steps(batch, world) == steps(16, 1)


def test_a_row_that_fits_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="data.batch_tokens is 50, but a row has 60 tokens"):
        TrainBatchSampler([40, 60], 4, 0, batch_tokens=50)
