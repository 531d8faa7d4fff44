"""Objectives that weigh tokens by what the model in training says of them."""

from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.objectives.base import BeforeTraining, Objective, entropy_of_top


class NLL(Objective):
    """The negative log-likelihood: what is minimised without an objective, too.

    Args:
        log_kl: Keep what the model before training says, and log ``train/kl_to_before``, which forgetting is said to
            follow (arXiv 2509.04259).
        top_k: See :class:`Objective`.
    """

    def __init__(self, log_kl: bool = True, top_k: int = 64) -> None:
        self.needs_before = self.logs_only = log_kl
        self.top_k = in_range("objective.top_k", top_k, 1)

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        return nll


class DFT(Objective):
    """Each token's NLL times its own probability (arXiv 2508.05629), which has no gradient there."""

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        return nll * (-nll.detach()).exp()


class EAFT(Objective):
    """Each token's NLL times (H / 3)^α, H the entropy of its 20 most probable tokens (arXiv 2601.02151).

    Where the model is sure of something else, H is small and the token weighs little.

    Args:
        alpha: α; 0 is the NLL.
        k: Over how many tokens H is computed; 3 is about ln 20.
    """

    def __init__(self, alpha: float = 1.0, k: int = 20) -> None:
        self.alpha, self.k = in_range("objective.alpha", alpha, 0), in_range("objective.k", k, 2)

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        return nll * (entropy_of_top(logits.detach(), self.k) / 3.0) ** self.alpha
