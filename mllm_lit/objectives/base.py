"""What a training step minimises: a loss for every answer token, in plain torch."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from mllm_lit.errors import UserError


@dataclass
class BeforeTraining:
    """What the model before training says of N answer tokens.

    Attributes:
        log_p: (N,); log-probability of the token, in nats.
        sample_nll: (N,); mean NLL of all answer tokens of the token's sample.
        top_ids: (N, K); the most probable tokens at the objective's temperature.
        top_log_p: (N, K); their log-probabilities at that temperature.
        mixed: (N,); whether the token is of a replayed or rehearsed row, not of the target's own.
    """

    log_p: Tensor
    sample_nll: Tensor
    top_ids: Tensor
    top_log_p: Tensor
    mixed: Tensor

    def columns(self) -> tuple[Tensor, ...]:
        """The tensors, a row a token."""
        return tuple(getattr(self, one.name) for one in fields(self))

    def to(self, device: torch.device) -> "BeforeTraining":
        """Copy to a device."""
        return BeforeTraining(*(column.to(device) for column in self.columns()))


class Objective(ABC):
    """The loss of each answer token; a step minimises their sum over all of them, divided by how many count.

    The division comes when the optimizer step's tokens are known, over accumulation and ranks; so an objective never
    takes a mean. Evaluation, and what importance rules look at before training, stay with the NLL.
    """

    needs_before: bool = False
    """Whether it asks what the model before training says of the tokens; that is computed once, before the first
    step."""
    logs_only: bool = False
    """Whether that is asked for only to log how far the model moves, and no loss depends on it."""
    temperature: float = 1.0
    """At which the most probable tokens before training are kept."""
    top_k: int = 64
    """How many of them are kept of each token."""

    follows_steps: bool = False
    """Whether :meth:`stepped` asks for what each optimizer step has found."""
    look_every: int | None = None
    """Optimizer steps between two looks at the rehearsed samples that are held out of training; ``None`` for none."""

    def stepped(self, sample_nll: Tensor) -> dict[str, float]:
        """Take in what an optimizer step has found, if :attr:`follows_steps`; the losses of the next may depend on it.

        Args:
            sample_nll: (S,), mean NLL of each of the target's own samples in the step, over accumulation and ranks.

        Returns:
            What to log, by name.
        """
        return {}

    def looked(self, divergence: float) -> dict[str, float]:
        """Take in the mean KL(p0 ‖ pθ) of the held-out samples' tokens.

        Returns:
            What to log, by name.
        """
        return {}

    def state_dict(self) -> dict[str, float]:
        """What training has changed, for checkpoints."""
        return {}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Take it back."""
        assert not state, f"{type(self).__name__} keeps nothing"

    def prepare(self, log_p: Tensor, sample_nll: Tensor, mixed: int) -> list[str]:
        """Look at what the model before training says of the target's own samples, before the first step.

        Args:
            log_p: (N,), of all their answer tokens.
            sample_nll: (S,), mean NLL of each sample's.
            mixed: How many replayed and rehearsed samples are trained on beside them.

        Returns:
            What the user should know about this objective on these samples, a line each.

        Raises:
            ObjectiveError: It cannot mean anything on them.
        """
        return []

    @abstractmethod
    def losses(self, logits: Tensor, targets: Tensor, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        """Loss of each token.

        Args:
            logits: (N, V), of the model in training.
            targets: (N,), the answers' tokens.
            nll: (N,), −log p of them, fp32, with a gradient.
            before: Of the same tokens, where :attr:`needs_before`.

        Returns:
            (N,), fp32.
        """

    def counted(self, nll: Tensor, before: BeforeTraining | None) -> Tensor:
        """Which tokens count in the mean, (N,), 1 or 0; a token that does not count has to have a loss of 0."""
        return torch.ones_like(nll.detach())


class ObjectiveError(UserError, ValueError):
    """An objective cannot be used here; the message says why and what to take instead."""


def kl_to_before(logits: Tensor, before: BeforeTraining, temperature: float = 1.0) -> Tensor:
    """KL(p0 ‖ pθ) of each token in nats, (N,), over the K kept tokens of p0 and all others as one.

    Never above the divergence over the whole vocabulary, and equal to it if K is its size.

    Args:
        logits: (N, V), of the model in training.
        before: Whose ``top_log_p`` are of ``logits / temperature``.
        temperature: Of both.
    """
    scaled = logits.float() / temperature
    total = scaled.logsumexp(1)
    mine = scaled.gather(1, before.top_ids) - total[:, None]
    there = before.top_log_p.exp()
    divergence = (there * (before.top_log_p - mine)).sum(1)
    if before.top_ids.shape[1] >= logits.shape[1]:
        return divergence
    rest = (1 - there.sum(1)).clamp(min=0)
    others = scaled.scatter(1, before.top_ids, -torch.inf).logsumexp(1) - total
    return divergence + torch.where(rest > 0, rest * (rest.clamp(min=1e-30).log() - others), 0.0)


def entropy_of_top(logits: Tensor, k: int) -> Tensor:
    """Entropy in nats of the distribution over the k most probable tokens alone, (N,)."""
    log_p = nn.functional.log_softmax(logits.float().topk(min(k, logits.shape[1]), dim=1).values, dim=1)
    return -(log_p.exp() * log_p).sum(1)
