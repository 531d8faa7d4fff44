"""TIES (Yadav et al., NeurIPS 2023, arXiv 2306.01708) for one task, where only its trimming is left."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.merging.base import Merge, changes
from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums


class TIES(Merge):
    """Keep the largest changes, set the others back to θ0, scale.

    Args:
        keep: Share of the entries that keep their change.
        scale: λ on what is kept.
        scope: Rank the entries of the whole ``model`` together, as the paper does, or of each ``tensor``.
    """

    def __init__(self, keep: float = 0.2, scale: float = 1.0, scope: Literal["model", "tensor"] = "model") -> None:
        self.keep, self.scale, self.scope = in_range("keep", keep, 0, 1), in_range("scale", scale), scope

    def start(self, reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
        self.kept = select_top(
            tuned,
            lambda name: changes(reference, tuned, name),
            self.keep,
            ShardSums(list(tuned.values())),
            joint=self.scope == "model",
        )

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        return torch.where(self.kept[name], torch.lerp(before, after, self.scale), before)
