"""Grafting (Panigrahi et al., ICML 2023, arXiv 2302.06600): take over the few entries that carry the skill."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.merging.base import MergeError
from mllm_lit.merging.ties import TIES
from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums

Gradient = Callable[[dict[str, Tensor]], Mapping[str, Tensor]]


class Grafting(TIES):
    """``θ0 + γ ⊙ Δ`` with a binary γ: the entries that moved most, optionally refined by gradient.

    The refinement follows the paper: ``γ = σ(S)``, S starting at ±``logit`` from the entries that moved most, is
    trained on the task's loss with plain gradient descent through ``θ0 + γ ⊙ Δ``, then the largest S are kept, as many
    as before.

    Args:
        keep: Share of the entries that are grafted.
        scope: Rank the entries of the whole ``model`` together, or of each ``tensor``.
        steps: Of the refinement; 0 takes the entries that moved most as they are.
        lr: Of the refinement.
        logit: Starting value of S.
    """

    def __init__(
        self,
        keep: float = 0.1,
        scope: Literal["model", "tensor"] = "model",
        steps: int = 0,
        lr: float = 1e7,
        logit: float = 3.0,
    ) -> None:
        super().__init__(keep, 1.0, scope)
        self.steps, self.lr = in_range("steps", steps, 0), in_range("lr", lr, 0)
        self.logit = in_range("logit", logit)
        self.gradient: Gradient | None = None
        """Given the grafted weights, the gradient of the target's loss on one more batch, by name; for refinement."""

    def start(self, reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
        super().start(reference, tuned)
        if not self.steps:
            return
        if self.gradient is None:
            raise MergeError("Refining the graft wants the loss's gradient: set merge.gradient, or use steps: 0.")
        before = {name: reference[name].to(value.device, torch.float32) for name, value in tuned.items()}
        change = {name: value.float() - before[name] for name, value in tuned.items()}
        logits = {name: torch.where(kept, self.logit, -self.logit) for name, kept in self.kept.items()}
        for _ in range(self.steps):
            soft = {name: value.sigmoid() for name, value in logits.items()}
            gradient = self.gradient({name: before[name] + soft[name] * change[name] for name in tuned})
            for name, value in logits.items():
                slope = soft[name] * (1 - soft[name])
                value.sub_(gradient[name].float() * change[name] * slope, alpha=self.lr)
        lowest = min(float(value.min()) for value in logits.values() if value.numel())
        self.kept = select_top(
            tuned,
            lambda name: logits[name] - lowest,
            self.keep,
            ShardSums(list(tuned.values())),
            joint=self.scope == "model",
        )
