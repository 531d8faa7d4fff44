"""DARE (Yu et al., ICML 2024, arXiv 2311.03099): drop most of the change, rescale the rest."""

import torch
from torch import Tensor

from mllm_lit.importance.seeding import generator
from mllm_lit.merging.base import Merge


class DARE(Merge):
    """``θ0 + Δ ⊙ b / (1 − p)`` with ``b ~ Bernoulli(1 − p)``.

    Args:
        drop: p, in [0, 1).
        rescale: Divide by 1 − p.
        seed: ``None`` takes the run's seed. A tensor's draw depends on the seed and its name alone.
    """

    def __init__(self, drop: float = 0.9, rescale: bool = True, seed: int | None = None) -> None:
        if not 0.0 <= drop < 1.0:
            raise ValueError(f"drop is {drop}; what stays is divided by 1 − drop, so it has to be in [0, 1).")
        self.drop, self.rescale, self.seed = drop, rescale, seed

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        kept = torch.rand(after.shape, generator=generator(self.seed, f"dare {name}")).to(after.device) >= self.drop
        scale = 1 / (1 - self.drop) if self.rescale else 1.0
        # lerp is exact where the scale is 1, so drop = 0 returns θ to the bit.
        return torch.where(kept, torch.lerp(before, after, scale), before)
