"""Reduce intruder dimensions (arXiv 2410.21228): new singular directions that fine-tuning put above the old ones."""

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.merging.base import Merge


class ReduceIntruders(Merge):
    """Scale down those of each matrix's strongest left singular vectors that are like none it had before.

    With ``θ = U·S·Vᵀ`` and U⁰ the left singular vectors of θ0: each of the first k with ``max_j |u_iᵀ·u⁰_j| < ε`` is an
    intruder, and ``(1 − scale)·s_i·u_i·v_iᵀ`` is taken off θ. peft's function of this name makes a low-rank adapter of
    what is left, which cuts it to the adapter's rank; nothing is cut here. Tensors that are no matrices keep θ.

    Args:
        top_k: k.
        epsilon: ε.
        scale: What an intruder is multiplied with; 1 keeps θ.
    """

    def __init__(self, top_k: int = 10, epsilon: float = 0.5, scale: float = 0.75) -> None:
        self.top_k, self.epsilon = in_range("top_k", top_k, 0), in_range("epsilon", epsilon, 0, 1)
        self.scale = in_range("scale", scale, 0, 1)

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        if after.ndim != 2 or torch.equal(before, after):
            return after
        u, s, vh = torch.linalg.svd(after, full_matrices=False)
        old = torch.linalg.svd(before, full_matrices=False).U
        likest = (u[:, : self.top_k].T @ old).abs().amax(dim=1)
        found = (likest < self.epsilon).nonzero().flatten()
        return after - (1 - self.scale) * (u[:, found] * s[found]) @ vh[found]
