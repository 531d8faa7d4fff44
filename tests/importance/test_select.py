"""The k largest, against a stable sort."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums


def sorted_top(score: Tensor, count: int) -> Tensor:
    mask = torch.zeros(score.numel(), dtype=torch.bool)
    mask[score.flatten().sort(descending=True, stable=True).indices[:count]] = True
    return mask.view_as(score)


def scores(seed: int, ties: bool) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a": (7, 11), "b": (30,), "c": (), "d": (1, 3)}
    values = {name: torch.randn(shape, generator=generator).abs() for name, shape in shapes.items()}
    return {name: (value * 4).round() if ties else value for name, value in values.items()}


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_each_tensor(seed: int, share: float, ties: bool) -> None:
    given_scores = scores(seed, ties)
    masks = select_top(given_scores, given_scores.__getitem__, share, ShardSums(list(given_scores.values())))
    for name, score in given_scores.items():
        assert torch.equal(masks[name], sorted_top(score, round(share * score.numel())))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.booleans())
def test_jointly(seed: int, share: float, ties: bool) -> None:
    given_scores = scores(seed, ties)
    whole_tensors = ShardSums(list(given_scores.values()))
    masks = select_top(given_scores, given_scores.__getitem__, share, whole_tensors, joint=True)
    whole = torch.cat([score.flatten() for score in given_scores.values()])
    expected = sorted_top(whole, round(share * whole.numel()))
    assert torch.equal(torch.cat([masks[name].flatten() for name in given_scores]), expected)


@pytest.mark.parametrize("value", [0.0, 1e-42, 3e38])
def test_all_equal_takes_the_first(value: float) -> None:
    score = {"w": torch.full((10,), value)}
    mask = select_top(score, score.__getitem__, 0.3, ShardSums(list(score.values())))["w"]
    assert mask.tolist() == [True] * 3 + [False] * 7
