"""Gradient top-k: SIFT (arXiv 2312.11875), GPS (2312.10136) and SPU (2308.12462) in one rule."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mllm_lit.errors import in_range
from mllm_lit.importance.base import RuleError
from mllm_lit.importance.fixed_mask import FixedMask
from mllm_lit.select import select_top
from mllm_lit.tensors import sharded_dims


class GradientTopK(FixedMask):
    """Train the entries with the largest gradient of the target's first batches.

    Args:
        trained: Share of entries that train, of each tensor or of each output row.
        scope: ``tensor`` (SIFT), or ``row``: at least one entry of every row of a matrix (GPS).
        batches: How many the gradient is summed over.
        apply: See :class:`FixedMask`.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    needs_data = "target"

    def __init__(
        self,
        trained: float = 0.05,
        scope: Literal["tensor", "row"] = "tensor",
        batches: int = 1,
        apply: Literal["weights", "gradients"] = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(apply, **shared)
        self.trained_share, self.scope = in_range("importance.trained", trained, 0, 1), scope
        self.batches = in_range("importance.batches", batches, 1)

    def prepare(self, gradients: Iterator[Any] | None = None, model: nn.Module | None = None) -> None:
        sums = self.sum_gradients(gradients, self.batches, square=False)
        if self.scope == "tensor":
            self.keep_only(
                select_top(self.parameters, lambda name: sums[name].abs(), self.trained_share, self.sum_shards)
            )
        else:
            self.keep_only({name: self._rows(name, total.abs()) for name, total in sums.items()})

    def _rows(self, name: str, score: Tensor) -> Tensor:
        parameter = self.parameters[name]
        sharded = sharded_dims(parameter)
        if sharded is not None and any(getattr(p, "dim", 0) != 0 for p in parameter.placements):  # type: ignore[attr-defined]
            raise RuleError(f"{name!r} is split across its rows; scope: row wants whole rows on each rank.")
        rows = score.reshape(len(score), -1) if score.ndim > 1 else score.reshape(1, -1)
        if score.ndim < 2 and sharded is not None:
            raise RuleError(f"{name!r} is one row split over ranks; use scope: tensor.")
        count = max(1, round(self.trained_share * rows.shape[1]))
        index = rows.topk(count, dim=1).indices
        return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, index, True).view_as(score)
