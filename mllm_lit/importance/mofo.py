"""MoFO, the momentum-filtered optimizer (Chen et al., TMLR 2025, arXiv 2407.20999)."""

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.select import select_top
from mllm_lit.tensors import local


class MoFO(Rule):
    """Adam's update lands only where its first moment is among the largest of its tensor; moments go on everywhere.

    Costs a copy of the trainable tensors, and a selection at every step (which waits for the device).

    Args:
        trained: Share of each tensor that a step updates (the paper uses 5 to 20 %).
    """

    def __init__(self, trained: float = 0.1) -> None:
        super().__init__()
        self.share = in_range("importance.trained", trained, 0, 1)

    def start(self) -> None:
        self.previous = {name: local(p).clone() for name, p in self.parameters.items()}
        self.updated: dict[str, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        for name, parameter in self.parameters.items():
            self.previous[name].copy_(local(parameter))

    def after_step(self) -> None:
        self.updated = select_top(self.parameters, self._momentum, self.share, self.sum_shards)
        for name, parameter in self.parameters.items():
            weight = local(parameter)
            weight.copy_(torch.where(self.updated[name], weight, self.previous[name]))

    def mask(self, name: str) -> Tensor | None:
        return self.updated[name].float() if self.updated else None

    def _momentum(self, name: str) -> Tensor:
        state = self.optimizer.state[self.parameters[name]]
        if "exp_avg" not in state:
            if self.parameters[name].grad is None:
                return torch.zeros_like(self.previous[name])  # never had a gradient, so nothing moved either
            raise RuleError(
                f"MoFO reads the first moment exp_avg, which {type(self.optimizer).__name__} does not keep; use AdamW."
            )
        return local(state["exp_avg"]).abs()
