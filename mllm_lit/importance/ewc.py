"""Elastic weight consolidation (Kirkpatrick et al., PNAS 2017, arXiv 1612.00796)."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mllm_lit.errors import check_seed, in_range
from mllm_lit.importance.base import RuleError
from mllm_lit.importance.probing import self_generated
from mllm_lit.importance.pull import Pull
from mllm_lit.tensors import local, shard_like


class EWC(Pull):
    """``strength/2 · Σ F·(θ − θ0)²``, F the diagonal Fisher information of what is to be remembered.

    F is the mean of squared gradients of single rows, in fp32: 4 bytes per trainable entry beside θ0.

    In a sequence of runs F may accumulate, as in online EWC (Schwarz et al., ICML 2018, arXiv 1805.06370; Huszár,
    arXiv 1712.03847): ``F ← decay · F of the run before + F of this run's rows``, with one θ0.

    Args:
        strength: λ of the paper.
        fisher: From rows of train splits (``source``), or from text that the model has ``generated`` itself.
        rows: How many.
        rows_from: With ``fisher: source``, the names of the sets, sources and others, whose rows are taken in turns;
            ``None`` for all sources.
        accumulate: Add the F of the run that this one starts from, and leave F in the run's directory for the next one.
        decay: γ of online EWC, the factor on the earlier F; 1 is the plain sum.
        form: ``loss`` or ``decoupled``; see :class:`Pull`.
        seed: Of the generated text; ``None`` takes the run's seed.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    batch_size = 1

    def __init__(
        self,
        strength: float = 400.0,
        fisher: Literal["source", "generated"] = "source",
        rows: int = 256,
        rows_from: Sequence[str] | None = None,
        accumulate: bool = False,
        decay: float = 1.0,
        form: Literal["loss", "decoupled"] = "loss",
        seed: int | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(strength, form, **shared)
        self.rows, self.seed = in_range("importance.rows", rows, 1), check_seed("importance.seed", seed)
        self.needs_data = "source" if fisher == "source" else "model"
        if rows_from is not None and fisher != "source":
            raise RuleError(f"importance.rows_from names sets, but fisher: {fisher} looks at none. Leave one out.")
        self.rows_from, self.accumulates = rows_from, accumulate
        self.decay = in_range("importance.decay", decay, high=1, above=0)

    def prepare(self, gradients: Iterator[Any] | None = None, model: nn.Module | None = None) -> None:
        if self.needs_data == "model":
            if model is None:
                raise RuleError("fisher: generated wants the model: call prepare(model=...).")
            gradients = self._generated(model)
        fisher = self.sum_gradients(gradients, self.rows, square=True)
        self.buffers["fisher"] = self.like_parameters(torch.float32)
        for name, total in fisher.items():
            local(self.buffers["fisher"][name]).copy_(total.div_(self.rows))
        for name, before in self.earlier.get("fisher", {}).items():
            mine = local(self.buffers["fisher"][name])
            mine.add_(shard_like(before, self.parameters[name]).to(mine), alpha=self.decay)
        self.earlier = {}

    def weight(self, name: str) -> Tensor:
        if "fisher" not in self.buffers:
            raise RuleError("EWC has no Fisher information yet: call prepare() before the first step.")
        return local(self.buffers["fisher"][name])

    def _generated(self, model: nn.Module) -> Iterator[None]:
        for tokens in self_generated(model, self.rows, batch_size=1, seed=self.seed, context=self.forward_context):
            model.zero_grad(set_to_none=True)
            with torch.enable_grad(), self.forward_context():
                loss: Tensor = model(input_ids=tokens, labels=tokens).loss
            torch.autograd.backward(loss)
            yield
