"""Connectors against loop-written oracles, and their sizes."""

import pytest
import torch
from torch import Tensor

from mllm_lit.backbones.connectors import CONNECTORS, Sizes, SpaceToDepth, positions_2d, tokens_per_image


@pytest.mark.parametrize("kind", CONNECTORS)
@pytest.mark.parametrize("grid", [4, 6])
def test_every_connector_makes_the_announced_number_of_embeddings(kind: str, grid: int) -> None:
    sizes = Sizes(grid=grid, vision=8, llm=16, queries=9)
    connector = CONNECTORS[kind](sizes)
    features = torch.randn(2, grid * grid, 8, requires_grad=True)
    out = connector(features)
    assert out.shape == (2, tokens_per_image(kind, sizes), 16)
    out.square().sum().backward()
    assert features.grad is not None
    assert (features.grad.abs().sum(-1) > 0).all(), "every patch is read"
    assert all(p.grad is not None for p in connector.parameters())


def neighbours(features: Tensor, factor: int, transposed: bool) -> Tensor:
    """Space to depth, written as loops over the blocks."""
    batch, count, width = features.shape
    side = int(count**0.5)
    out_side = -(-side // factor)
    rows = []
    for first in range(out_side):
        for second in range(out_side):
            block_row, block_col = (second, first) if transposed else (first, second)
            parts = []
            for row in range(block_row * factor, (block_row + 1) * factor):
                for col in range(block_col * factor, (block_col + 1) * factor):
                    inside = row < side and col < side
                    parts.append(features[:, row * side + col] if inside else torch.zeros(batch, width))
            rows.append(torch.cat(parts, dim=1))
    return torch.stack(rows, dim=1)


@pytest.mark.parametrize("side", [4, 5])
@pytest.mark.parametrize("factor", [2, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_space_to_depth(side: int, factor: int, transposed: bool) -> None:
    features = torch.arange(2 * side * side * 3, dtype=torch.float32).view(2, side * side, 3)
    assert torch.equal(SpaceToDepth(factor, transposed)(features), neighbours(features, factor, transposed))


def test_positions_tell_every_cell_from_every_other() -> None:
    table = positions_2d(5, 16)
    distances = torch.cdist(table, table) + 10 * torch.eye(25)
    assert distances.min() > 0.1
    assert torch.equal(table[7][:8], table[9][:8]), "cells 7 and 9 share a row"
    assert torch.equal(table[3][8:], table[8][8:]), "cells 3 and 8 share a column"


@pytest.mark.parametrize(
    ("kind", "sizes", "complaint"),
    [
        ("pixel_shuffle", Sizes(5, 8, 16), "Use downsample"),
        ("resampler", Sizes(4, 8, 16, queries=10), "Try 9"),
        ("resampler", Sizes(4, 8, 18, queries=9), "divisible by 4"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(kind: str, sizes: Sizes, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        CONNECTORS[kind](sizes)
