"""Random mask: what choosing by chance achieves."""

from typing import Any, Literal

import torch

from mllm_lit.errors import check_seed, in_range
from mllm_lit.importance.fixed_mask import FixedMask
from mllm_lit.importance.seeding import generator
from mllm_lit.tensors import shard_like


class RandomMask(FixedMask):
    """Train each entry with a fixed probability, drawn once.

    Args:
        trained: The probability.
        seed: ``None`` takes the run's seed. A tensor's mask depends on the seed and its name alone.
        apply: See :class:`FixedMask`.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    def __init__(
        self,
        trained: float = 0.5,
        seed: int | None = None,
        apply: Literal["weights", "gradients"] = "weights",
        **shared: Any,
    ) -> None:
        super().__init__(apply, **shared)
        self.trained_share = in_range("importance.trained", trained, 0, 1)
        self.seed = check_seed("importance.seed", seed)

    def start(self) -> None:
        super().start()
        masks = {}
        for name, parameter in self.parameters.items():
            # Drawn whole and on the CPU, so that devices and shards do not matter.
            draw = torch.rand(parameter.shape, generator=generator(self.seed, name))
            masks[name] = shard_like(draw < self.trained_share, parameter)
        self.keep_only(masks)
