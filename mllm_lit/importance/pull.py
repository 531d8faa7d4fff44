"""Rules that pull the weights towards θ0 with a strength per entry."""

from typing import Any, Literal

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.importance.base import Rule
from mllm_lit.tensors import chunks, local


class Pull(Rule):
    """Base of the pulls: a loss term ``strength/2 · Σ F·(θ − θ0)²`` with F = 1 unless :meth:`weight` says otherwise.

    Args:
        strength: Of the pull. The sum runs over entries; a mean would divide it by the size of the model.
        form: ``loss`` adds the term's gradient to every optimizer step's, once and before clipping, which is what
            adding the term to the loss does, without a graph. ``decoupled`` leaves the gradient alone and moves the
            weight itself after the step, ``θ ← θ − min(1, lr·strength·F)·(θ − θ0)``, as AdamW does with decay.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    needs_reference = True

    def __init__(self, strength: float, form: Literal["loss", "decoupled"] = "loss", **shared: Any) -> None:
        super().__init__(**shared)
        # Below 0 it would push away from θ0.
        self.strength, self.form = in_range("importance.strength", strength, 0), form

    def weight(self, name: str) -> Tensor | None:
        """F of a parameter's local entries, or ``None`` for 1."""
        return None

    @torch.no_grad()
    def before_step(self) -> None:
        if self.form != "loss":
            return
        for name, parameter in self.parameters.items():
            gradient = self.gradient(name)
            if gradient is not None:
                gradient.add_(self._moved(name).to(gradient.dtype), alpha=self.strength)
            else:
                parameter.grad = torch.zeros_like(parameter)
                local(parameter.grad).add_(self._moved(name), alpha=self.strength)

    def after_step(self) -> None:
        if self.form != "decoupled":
            return
        assert self.reference is not None
        rates = self.learning_rates()
        for name, parameter in self.parameters.items():
            scale = self.weight(name)
            for now, base, factor in chunks(
                local(parameter), self.reference[name], torch.ones_like(local(parameter)) if scale is None else scale
            ):
                moved = now - base.to(now.device)
                now.sub_(moved.mul_((factor * (rates[name] * self.strength)).clamp_max_(1.0)))

    @torch.no_grad()
    def penalty(self) -> Tensor:
        """The loss term now, fp64; under sharding of the whole tensors, so every rank has to call it."""
        assert self.reference is not None
        rows = []
        for name, parameter in self.parameters.items():
            moved = local(parameter).double() - self.reference[name].to(local(parameter).device)
            scale = self.weight(name)
            rows.append((moved.square() if scale is None else moved.square() * scale).sum())
        return self.sum_shards(torch.stack(rows).unsqueeze(1)).sum() * (self.strength / 2)

    def _moved(self, name: str) -> Tensor:
        assert self.reference is not None
        now, scale = local(self.parameters[name]), self.weight(name)
        moved = now - self.reference[name].to(now.device)
        return moved if scale is None else moved * scale
