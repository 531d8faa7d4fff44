"""What the model before training says of every answer token that is trained on: computed once, kept in a file."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from mllm_lit.answers import labelled_outputs
from mllm_lit.data.collate import Batch
from mllm_lit.data.sample import Sample
from mllm_lit.errors import writing
from mllm_lit.evaluation.sets import digest, told
from mllm_lit.objectives.base import BeforeTraining, Objective

PROBED = 64
"""Of so many answer tokens of the target's first samples the whole distribution is kept: to tell how far the model has
moved at its end, and what the most probable tokens alone leave out."""


def key_of(sample: Sample) -> str:
    """Tells a training row from all others; replayed rows have ids of their own."""
    return f"{sample.source}\t{sample.id}"


@dataclass
class Store:
    """Tables over all answer tokens, the samples one after the other.

    Attributes:
        counts: (S,); answer tokens of each sample.
        log_p: (N,); see :class:`BeforeTraining`, as the two others.
        top_ids: (N, K).
        top_log_p: (N, K).
        probed: (P, V); log-probabilities at temperature 1 of the first P tokens.
        places: Sample -> its number.
    """

    counts: Tensor
    log_p: Tensor
    top_ids: Tensor
    top_log_p: Tensor
    probed: Tensor
    places: dict[str, int]

    def __post_init__(self) -> None:
        self.starts = [0, *self.counts.cumsum(0).tolist()]
        owners = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        self.sample_nll = -torch.zeros(len(self.counts)).index_add(0, owners, self.log_p) / self.counts

    def of(self, batch: Batch) -> BeforeTraining:
        """What is known of a batch's answer tokens, in the order of :attr:`Batch.labelled`, on its device."""
        numbers = [self.places[key_of(batch.samples[row])] for row in batch.row_order]
        tokens = torch.cat([torch.arange(self.starts[n], self.starts[n + 1]) for n in numbers])
        means = torch.repeat_interleave(self.sample_nll[numbers], self.counts[numbers])
        mixed = torch.tensor([bool(batch.samples[row].source) for row in batch.row_order])
        mixed = torch.repeat_interleave(mixed, self.counts[numbers])
        found = BeforeTraining(self.log_p[tokens], means, self.top_ids[tokens].long(), self.top_log_p[tokens], mixed)
        return found.to(batch.labels.device)

    def covered(self) -> Tensor:
        """How much of the probability the kept tokens hold, (N,)."""
        return self.top_log_p.exp().sum(1).clamp(max=1)

    def write(self, path: Path) -> None:
        """Keep it, whole or not at all."""
        tensors = {name: getattr(self, name) for name in ("counts", "log_p", "top_ids", "top_log_p", "probed")}
        size = sum(tensor.nbytes for tensor in tensors.values())
        with writing(path, size, "Nothing was trained yet."):
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_suffix(".part")
            save_file(tensors, part)
            part.replace(path)

    @classmethod
    def read(cls, path: Path, samples: Sequence[Sample]) -> "Store":
        """What was kept of these samples, which are known by the file's name."""
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return cls(**tensors, places={key_of(sample): number for number, sample in enumerate(samples)})


def name_of(samples: Sequence[Sample], objective: Objective, model: str) -> str:
    """The file's name: a digest of all that its content depends on.

    Args:
        samples: The training rows.
        objective: That asks.
        model: A digest of the model before training.
    """
    facts = repr((model, objective.temperature, objective.top_k))
    found = digest([facts, *map(key_of, samples), *told(samples, moved=True)])
    return f"before_training_{found[:16]}.safetensors"


@torch.no_grad()
def look(
    net: nn.Module,
    collate: Callable[[list[Sample]], Batch],
    samples: Sequence[Sample],
    size: int,
    objective: Objective,
    device: torch.device,
    context: Callable[[], AbstractContextManager[Any]],
    progress: Callable[[Iterable[Any], int], Iterable[Any]],
) -> tuple[Tensor, ...]:
    """What a model says of samples' answer tokens, ``size`` samples at a time.

    Returns:
        Tokens of each sample (S,), log p (N,), ids (N, K) and log-probabilities (N, K) of the most probable tokens.
    """

    def said(logits: Tensor, ids: Tensor) -> Tensor:
        log_p = nn.functional.log_softmax(logits.float(), dim=1).gather(1, ids[:, None])
        soft = nn.functional.log_softmax(logits.float() / objective.temperature, dim=1)
        top = soft.topk(min(objective.top_k, soft.shape[1]), dim=1)
        # Numbers of tokens are below 2^24, so fp32 holds them.
        return torch.cat([log_p, top.indices.float(), top.values], dim=1)

    counts, found = list[Tensor](), list[Tensor]()
    starts = range(0, len(samples), size)
    for start in progress(starts, len(starts)):
        batch = collate(list(samples[start : start + size])).to(device)
        with context():
            found.append(labelled_outputs(net, batch, said).float().cpu())
        counts.append(batch.labelled.counts.cpu())
    every = torch.cat(found)
    k = (every.shape[1] - 1) // 2
    return torch.cat(counts), every[:, 0], every[:, 1 : 1 + k].int(), every[:, 1 + k :]


@torch.no_grad()
def probed_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """The target's own samples of which the whole distribution is kept, in batches; replayed ones aside."""
    own = [sample for sample in samples if not sample.source][:PROBED]
    return [own[start : start + size] for start in range(0, len(own), size)]


def probe(net: nn.Module, batches: Iterable[Batch], context: Callable[[], AbstractContextManager[Any]]) -> Tensor:
    """Log-probabilities (P, V) of the first answer tokens of some samples."""

    def whole(logits: Tensor, ids: Tensor) -> Tensor:
        return nn.functional.log_softmax(logits.float(), dim=1)

    found: list[Tensor] = []
    for batch in batches:
        with torch.no_grad(), context():
            found.append(labelled_outputs(net, batch, whole).float().cpu())
        if sum(map(len, found)) >= PROBED:
            break
    return torch.cat(found)[:PROBED]
