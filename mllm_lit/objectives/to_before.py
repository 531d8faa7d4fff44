"""Objectives that look at what the model before training says of the same token."""

import math

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.objectives.base import BeforeTraining, Objective, ObjectiveError, kl_to_before


class KLToBase(Objective):
    """NLL + λ·T²·KL(p0 ‖ pθ) at temperature T, p0 the model before training (as in LwF, arXiv 1606.09282).

    Args:
        strength: λ; 0 is the NLL.
        temperature: T.
        top_k: Of p0 so many tokens are kept and the others summed up.
    """

    needs_before = True

    def __init__(self, strength: float = 1.0, temperature: float = 2.0, top_k: int = 64) -> None:
        self.strength = in_range("objective.strength", strength, 0)
        self.temperature = in_range("objective.temperature", temperature, above=0)
        self.top_k = in_range("objective.top_k", top_k, 1)

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        if not self.strength:
            return nll
        pull = kl_to_before(logits, before, self.temperature)
        return nll + self.strength * self.temperature**2 * pull


class KLOnMixed(Objective):
    """NLL on the target's own samples, λ·T²·KL(p0 ‖ pθ) in its place on replayed and rehearsed ones.

    With ``data.rehearse`` it is self-distillation on the model's own answers: on them it is to say what it said, with
    all its doubts, not only the answer that was most probable.

    Args:
        strength: λ.
        temperature: T.
        top_k: See :class:`KLToBase`.
    """

    needs_before = True

    def __init__(self, strength: float = 5.0, temperature: float = 1.0, top_k: int = 64) -> None:
        self.strength = in_range("objective.strength", strength, above=0)
        self.temperature = in_range("objective.temperature", temperature, above=0)
        self.top_k = in_range("objective.top_k", top_k, 1)

    def prepare(self, log_p: Tensor, sample_nll: Tensor, mixed: int) -> list[str]:
        if not mixed:
            raise ObjectiveError(
                "KLOnMixed pulls on replayed and rehearsed samples, and this run has none. Give data.rehearse or "
                "data.replay, or take another objective."
            )
        return []

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        pull = kl_to_before(logits, before, self.temperature)
        return torch.where(before.mixed, self.strength * self.temperature**2 * pull, nll)


class ForgettingBudget(KLOnMixed):
    """:class:`KLOnMixed` whose strength is found while training, so that a budget of forgetting is kept.

    The user says how far the model may move: at most ``budget`` nats of KL(p0 ‖ pθ) a token, on rehearsed samples that
    are held out of training (``data.rehearse.held_out``). The strength is the multiplier λ of that constraint. Every
    ``every`` steps it becomes λ · exp(rate · (KL / budget − 1)), the exponent within ±1: it grows while the model is
    beyond its budget, and shrinks while it is within.

    Args:
        budget: In nats.
        every: Optimizer steps between two looks.
        rate: Of λ's changes.
        strength: λ at the start.
        temperature: See :class:`KLOnMixed`; the budget is of the same temperature.
        top_k: See :class:`KLToBase`.
    """

    def __init__(
        self,
        budget: float = 0.05,
        every: int = 10,
        rate: float = 0.5,
        strength: float = 1.0,
        temperature: float = 1.0,
        top_k: int = 64,
    ) -> None:
        super().__init__(strength, temperature, top_k)
        self.budget = in_range("objective.budget", budget, above=0)
        self.look_every = in_range("objective.every", every, 1)
        self.rate = in_range("objective.rate", rate, above=0)

    def looked(self, divergence: float) -> dict[str, float]:
        change = self.rate * (divergence / self.budget - 1)
        self.strength = min(max(self.strength * math.exp(min(max(change, -1.0), 1.0)), BOUNDS[0]), BOUNDS[1])
        return {"objective/kl_held_out": divergence, "objective/multiplier": self.strength}

    def state_dict(self) -> dict[str, float]:
        return {"strength": self.strength}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.strength = state["strength"]


BOUNDS = 1e-3, 1e4
"""Of λ: far enough apart for any budget that can be kept, and never 0, from which nothing grows."""


class ASFT(Objective):
    """DFT with a pull to the model before training: p·NLL + λ·KL(p0 ‖ pθ), p without a gradient.

    Args:
        strength: λ; 0 is DFT.
        top_k: See :class:`KLToBase`.
    """

    needs_before = True

    def __init__(self, strength: float = 0.1, top_k: int = 64) -> None:
        self.strength = in_range("objective.strength", strength, 0)
        self.top_k = in_range("objective.top_k", top_k, 1)

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        weighted = nll * (-nll.detach()).exp()
        return weighted + self.strength * kl_to_before(logits, before) if self.strength else weighted


class STM(Objective):
    """Selective token masking (arXiv 2501.14315): tokens whose perplexity before training is high are left out.

    Args:
        threshold: Perplexity 1 / p0 above which a token is left out.
    """

    needs_before = True

    def __init__(self, threshold: float = 2.5) -> None:
        self.threshold = in_range("objective.threshold", threshold, above=1)

    def prepare(self, log_p: Tensor, sample_nll: Tensor, mixed: int) -> list[str]:
        kept = self._kept(log_p)
        if not kept.any():
            raise ObjectiveError(
                f"STM would leave out all {len(kept)} answer tokens: before training each has a perplexity above "
                f"{self.threshold:g}. Raise objective.threshold, or take another objective."
            )
        left = int((~kept).sum())
        return [
            f"STM leaves out {left:,} of {len(kept):,} answer tokens, those that the model before training finds "
            "unlikely. Where an answer is a single letter or word, these are the samples that it answers wrongly."
        ]

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        return torch.where(self._kept(before.log_p), nll, 0.0)

    def counted(self, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        return self._kept(before.log_p).to(nll.dtype)

    def _kept(self, log_p: Tensor) -> Tensor:
        return (-log_p).exp() <= self.threshold


class TALR(Objective):
    """Each token's NLL times max(p^(1/τ), floor), p without a gradient and τ the median NLL of samples (2509.20758).

    Tokens that the model in training finds unlikely weigh less. The paper's τ is the median over the batch at hand;
    here it is over the optimizer step before (at first: over all samples before training), so that it depends neither
    on accumulation nor on ranks.

    Args:
        tau: τ, if it is not to follow the steps.
        floor: The smallest weight.
    """

    needs_before = True

    def __init__(self, tau: float | None = None, floor: float = 0.01) -> None:
        self.tau = in_range("objective.tau", tau, above=0)
        self.floor = in_range("objective.floor", floor, 0, 1)
        self.follows_steps = tau is None

    def prepare(self, log_p: Tensor, sample_nll: Tensor, mixed: int) -> list[str]:
        if self.tau is None:  # else given, or of the checkpoint
            self.stepped(sample_nll)
        follows = ", and follows the samples' median NLL" if self.follows_steps else ""
        return [f"TALR: τ is {self.tau:.4f}{follows}."]

    def stepped(self, sample_nll: Tensor) -> dict[str, float]:
        self.tau = max(float(sample_nll.quantile(0.5)), SMALLEST_TAU)
        return {"objective/tau": self.tau}

    def state_dict(self) -> dict[str, float]:
        return {} if self.tau is None else {"tau": self.tau}

    def load_state_dict(self, state: dict[str, float]) -> None:
        self.tau = state["tau"]

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert self.tau is not None
        return nll * (-nll.detach() / self.tau).exp().clamp(min=self.floor)


SMALLEST_TAU = 1e-6
"""Of TALR, where samples are learned by heart."""


class FLOW(Objective):
    """Each sample weighted exp(−ℓ0 / τ), ℓ0 its mean NLL before training, τ the median over the samples (2502.02797).

    Args:
        tau: τ; ``None`` for the median ℓ0 of the training samples.
    """

    needs_before = True

    def __init__(self, tau: float | None = None) -> None:
        self.tau = in_range("objective.tau", tau, above=0)

    def prepare(self, log_p: Tensor, sample_nll: Tensor, mixed: int) -> list[str]:
        if self.tau is None:
            self.tau = float(sample_nll.quantile(0.5))
        if not self.tau:
            raise ObjectiveError("FLOW: half of the samples have an NLL of 0 before training. Set objective.tau.")
        return [f"FLOW: τ is {self.tau:.4f}, the median NLL of the samples before training."]

    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        assert before is not None
        assert self.tau is not None
        return nll * (-before.sample_nll / self.tau).exp()
