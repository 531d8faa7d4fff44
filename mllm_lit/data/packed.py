"""Samples -> a batch of sequences that hold several rows each: questions on one picture, or unrelated ones."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mllm_lit.data.collate import IGNORE, Batch, Collate, Packing
from mllm_lit.data.prefixes import Parts, Prefixes
from mllm_lit.data.sample import Sample

SEQUENCE = 512
"""Unrelated rows are packed up to so many tokens, or up to the longest of them."""


@dataclass
class _Sequence:
    """What is known of each position, in order."""

    tokens: list[dict[str, Tensor]] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    packing: list[Tensor] = field(default_factory=list)
    length: int = 0

    def add(self, tokens: dict[str, Tensor], labels: Tensor, start: int, row: int, skipped: int) -> None:
        """Go on with some tokens."""
        count = len(labels)
        self.tokens.append(tokens)
        self.labels.append(labels)
        self.packing.append(torch.tensor([[start, row, skipped]]).expand(count, 3))
        self.length += count


class PackedCollate:
    """Turns samples into a :class:`Batch` with :class:`Packing`; loss and positions of every row are as if alone.

    Args:
        collate: The collator of whole rows.
        share: Rows with the same pictures behind the same text are in one sequence, which has the pictures once. It
            takes in further rows up to the length of the longest.
        pack: And up to :data:`SEQUENCE` tokens.
    """

    def __init__(self, collate: Collate, share: bool, pack: bool) -> None:
        self.collate, self.prefixes, self.share, self.pack = collate, Prefixes(collate), share, pack

    def __call__(self, samples: list[Sample]) -> Batch:
        """Build a batch.

        Raises:
            ImageError: An image cannot be read.
            FormatError: As :class:`~mllm_lit.data.prefixes.Prefixes` has it.
        """
        return self.batch(self.prefixes(samples, "pictures" if self.share else "nothing"))

    def batch(self, parts: Parts) -> Batch:
        """Build a batch of rows that were taken apart."""
        sequences = self._sequences(parts)
        longest = max(sequence.length for sequence in sequences)
        inputs = dict(parts.pixels)
        for name in dict.fromkeys(name for head in parts.heads for name in head):
            values = [
                torch.cat([part.get(name, torch.zeros_like(part["input_ids"])) for part in sequence.tokens])
                for sequence in sequences
            ]
            inputs[name] = _padded(values, longest, self.collate.padding(name))
        labels = _padded([torch.cat(sequence.labels) for sequence in sequences], longest, IGNORE)
        nothing = torch.stack([torch.arange(longest), *torch.zeros(2, longest, dtype=torch.long)], 1)
        known = [torch.cat(sequence.packing) for sequence in sequences]
        start, row, skipped = torch.stack([torch.cat([one, nothing[len(one) :]]) for one in known]).permute(2, 0, 1)
        return Batch(
            inputs,
            labels,
            parts.samples,
            sum(sequence.length for sequence in sequences),
            pictures=parts.pictures,
            packing=Packing(start.contiguous(), row.contiguous(), skipped.contiguous()),
        )

    def _sequences(self, parts: Parts) -> list[_Sequence]:
        """Prefixes with their rows, those with pictures in order, as their pixels are."""
        members: list[list[int]] = [[] for _ in parts.heads]
        for row, number in enumerate(parts.group):
            members[number].append(row)
        sizes = [
            len(head["input_ids"]) + sum(len(parts.rests[row].ids) for row in rows)
            for head, rows in zip(parts.heads, members, strict=True)
        ]
        room = max(SEQUENCE if self.pack else 0, *sizes)
        shown = [bool(parts.samples[rows[0]].images) for rows in members]
        sequences: list[_Sequence] = []
        for number in sorted(range(len(sizes)), key=lambda i: (not shown[i], 0 if shown[i] else -sizes[i])):
            open_ones = sequences[-1:] if shown[number] else sequences
            into = next((one for one in open_ones if one.length + sizes[number] <= room), None)
            if into is None:
                into = _Sequence()
                sequences.append(into)
            self._lay(into, parts, number, members[number])
        return sequences

    def _lay(self, sequence: _Sequence, parts: Parts, number: int, rows: list[int]) -> None:
        """Add a prefix and the rows behind it to a sequence."""
        head, start = parts.heads[number], sequence.length
        sequence.add(head, torch.full_like(head["input_ids"], IGNORE), start, -1, 0)
        begin = sequence.length
        for row in rows:
            rest = parts.rests[row]
            ids = torch.tensor(rest.ids)
            labels = torch.where(torch.tensor(rest.marked), ids, IGNORE)
            tokens = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            sequence.add(tokens, labels, start, row, sequence.length - begin)


def _padded(values: list[Tensor], length: int, padding: int) -> Tensor:
    return torch.stack([nn.functional.pad(value, (0, length - len(value)), value=padding) for value in values])
