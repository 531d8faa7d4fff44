"""DARE (Yu et al., ICML 2024, arXiv 2311.03099): drop most of the change, rescale the rest."""

import torch
from torch import Tensor

from mllm_lit.errors import check_seed, in_range
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
        # What stays is divided by 1 − drop.
        self.drop, self.rescale = in_range("drop", drop, 0, below=1), rescale
        self.seed = check_seed("seed", seed)

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        kept = torch.rand(after.shape, generator=generator(self.seed, f"dare {name}")).to(after.device) >= self.drop
        scale = 1 / (1 - self.drop) if self.rescale else 1.0
        # lerp is exact where the scale is 1, so drop = 0 returns θ to the bit.
        return torch.where(kept, torch.lerp(before, after, scale), before)
