"""Magnitude mask: SPIDER's ablation by weights alone (arXiv 2411.10928)."""

from typing import Any, Literal

from mllm_lit.errors import in_range
from mllm_lit.importance.fixed_mask import FixedMask
from mllm_lit.select import select_top
from mllm_lit.tensors import local


class MagnitudeMask(FixedMask):
    """Freeze the largest |θ0| of every tensor and train the rest.

    Args:
        frozen: Share of each tensor that stays at θ0.
        apply: See :class:`FixedMask`.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    def __init__(
        self,
        frozen: float = 0.5,
        apply: Literal["weights", "gradients"] = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(apply, **shared)
        self.frozen_share = in_range("importance.frozen", frozen, 0, 1)

    def start(self) -> None:
        super().start()
        base = self.reference if self.reference is not None else self.parameters
        device = local(next(iter(self.parameters.values()))).device
        large = select_top(
            self.parameters, lambda name: local(base[name]).to(device).abs(), self.frozen_share, self.sum_shards
        )
        self.keep_only({name: ~mask for name, mask in large.items()})
