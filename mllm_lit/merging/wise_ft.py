"""WiSE-FT (Wortsman et al., CVPR 2022, arXiv 2109.01903): interpolate in weight space."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.merging.base import Merge

ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class WiSEFT(Merge):
    """``(1 − α)·θ0 + α·θ``.

    Args:
        alpha: 0 is θ0, 1 is θ.
    """

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = in_range("alpha", alpha, 0, 1)

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        return torch.lerp(before, after, self.alpha)


def sweep(
    reference: Mapping[str, Tensor],
    tuned: Mapping[str, Tensor],
    alphas: Sequence[float] = ALPHAS,
) -> Iterator[tuple[float, dict[str, Tensor]]]:
    """The merged weights for each α in turn, one set in memory at a time."""
    for alpha in alphas:
        yield alpha, WiSEFT(alpha)(reference, tuned)
