"""Child-Tuning (Xu et al., EMNLP 2021, arXiv 2109.05687): train a part of the network, drawn or chosen."""

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import torch
from torch import nn

from mllm_lit.errors import check_seed, in_range
from mllm_lit.importance.base import Rule
from mllm_lit.importance.fixed_mask import FixedMask
from mllm_lit.importance.seeding import generator
from mllm_lit.select import select_top
from mllm_lit.tensors import local


class ChildTuningF(Rule):
    """Task-free: at every step, ``g ← g ⊙ b / p`` with ``b ~ Bernoulli(p)`` drawn anew.

    Args:
        trained: The probability p.
        seed: ``None`` takes the run's seed. Shards of one tensor draw from one stream each, so the draw depends on the
            sharding; replicated tensors draw alike on all ranks.
    """

    def __init__(self, trained: float = 0.3, seed: int | None = None) -> None:
        super().__init__()
        # Gradients are divided by it.
        self.share = in_range("importance.trained", trained, high=1, above=0)
        self.seed = check_seed("importance.seed", seed)

    def start(self) -> None:
        self.generator = generator(self.seed, "child", local(next(iter(self.parameters.values()))).device)

    @torch.no_grad()
    def before_step(self) -> None:
        for name in self.parameters:
            gradient = self.gradient(name)
            if gradient is not None:
                gradient.mul_(torch.empty_like(gradient).bernoulli_(self.share, generator=self.generator))
                gradient.div_(self.share)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"].cpu())


class ChildTuningD(FixedMask):
    """Task-driven: train the entries with the largest Fisher information of the target, all tensors ranked together.

    Args:
        trained: Share of all entries that trains.
        batches: How many squared gradients are averaged. Rows are taken one by one, as the Fisher information wants.
        apply: See :class:`FixedMask`.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    needs_data = "target"
    batch_size = 1

    def __init__(
        self,
        trained: float = 0.3,
        batches: int = 128,
        apply: Literal["weights", "gradients"] = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(apply, **shared)
        self.trained_share = in_range("importance.trained", trained, 0, 1)
        self.batches = in_range("importance.batches", batches, 1)

    def prepare(self, gradients: Iterator[Any] | None = None, model: nn.Module | None = None) -> None:
        fisher = self.sum_gradients(gradients, self.batches, square=True)
        self.keep_only(select_top(self.parameters, fisher.__getitem__, self.trained_share, self.sum_shards, joint=True))
