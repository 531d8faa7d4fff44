"""Samples -> a batch in which what rows have in common up to the end of their pictures stands once."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.data.prefixes import Parts, Prefixes
from mllm_lit.data.sample import Sample


@dataclass
class SharedBatch:
    """B rows that begin with one of G prefixes of at most P tokens.

    A row is a prefix (padded on the left), the part of its prompt that whole row and prompt have in common (at most S
    tokens, padded on the left), and then either what the true answer makes of it (at most A tokens, padded on the
    right) or the end of the prompt (at most R tokens, one as a rule, padded on the left).

    Attributes:
        samples: The B rows.
        prefixes: Keyword arguments of the model for the prefixes: (G, P), pixels, ...
        pictures: As in :class:`~mllm_lit.data.collate.Batch`, for the pictures of the prefixes.
        group: (B,); which prefix a row begins with.
        rest: (B, S + A); token ids behind the prefix, with the true answer.
        rest_mask: (B, S + A); 0 where there is padding.
        labels: (B, S + A); the token id where the NLL is measured, else ``IGNORE``.
        answer: A.
        prompt: (B, P + S + R); token ids of the whole prompt as generation takes it, behind copies of its first token.
        end_mask: (B, R); 0 where the end of the prompt is padded.
    """

    samples: list[Sample]
    prefixes: dict[str, Tensor]
    pictures: tuple[int, ...]
    group: Tensor
    rest: Tensor
    rest_mask: Tensor
    labels: Tensor
    answer: int
    prompt: Tensor
    end_mask: Tensor

    def to(self, device: torch.device, non_blocking: bool = False) -> "SharedBatch":
        """Copy to a device."""
        moved = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in moved.items()}
        prefixes = {name: value.to(device, non_blocking=non_blocking) for name, value in self.prefixes.items()}
        return replace(self, prefixes=prefixes, **moved)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.samples)


class SharedCollate:
    """Turns samples into a :class:`SharedBatch`; every row is, token by token, what ``collate`` makes of it.

    Args:
        collate: The collator of whole rows.
    """

    def __init__(self, collate: Collate) -> None:
        self.prefixes, self._padding = Prefixes(collate), collate.padding

    def __call__(self, samples: list[Sample]) -> SharedBatch:
        """Build a batch.

        Raises:
            ImageError: An image cannot be read.
            FormatError: As :class:`~mllm_lit.data.prefixes.Prefixes` has it.
        """
        parts = self.prefixes(samples)
        prefixes = dict(parts.pixels)
        for name in dict.fromkeys(name for head in parts.heads for name in head):
            filled = [head.get(name, torch.zeros_like(head["input_ids"])) for head in parts.heads]
            prefixes[name] = _stacked(filled, self._padding(name))
        return self._batch(parts, prefixes)

    def _batch(self, parts: Parts, prefixes: dict[str, Tensor]) -> SharedBatch:
        behind = max(rest.common for rest in parts.rests)
        answer = max(len(rest.ids) - rest.common for rest in parts.rests)
        end = max(len(rest.asked) - rest.common for rest in parts.rests)
        length = prefixes["input_ids"].shape[1] + behind + end
        rows: dict[str, list[Tensor]] = {name: [] for name in ("rest", "rest_mask", "labels", "prompt", "end_mask")}
        for number, rest in zip(parts.group, parts.rests, strict=True):
            room = (behind - rest.common, answer - len(rest.ids) + rest.common)
            ids = torch.tensor(rest.ids)
            rows["rest"].append(nn.functional.pad(ids, room, value=self._padding("input_ids")))
            rows["rest_mask"].append(nn.functional.pad(torch.ones_like(ids), room))
            marked = torch.where(torch.tensor(rest.marked), ids, IGNORE)
            rows["labels"].append(nn.functional.pad(marked, room, value=IGNORE))
            whole = torch.cat([parts.heads[number]["input_ids"], torch.tensor(rest.asked)])
            # Not the padding's token: a repetition penalty would count it as said.
            rows["prompt"].append(nn.functional.pad(whole, (length - len(whole), 0), value=int(whole[0])))
            last = torch.ones(len(rest.asked) - rest.common, dtype=torch.long)
            rows["end_mask"].append(nn.functional.pad(last, (end - len(last), 0)))
        stacked = {name: torch.stack(values) for name, values in rows.items()}
        return SharedBatch(parts.samples, prefixes, parts.pictures, torch.tensor(parts.group), answer=answer, **stacked)


def _stacked(rows: Sequence[Tensor], padding: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=padding) for row in rows])
