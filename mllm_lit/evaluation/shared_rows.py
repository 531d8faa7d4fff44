"""Samples -> a batch in which what rows have in common up to the end of their pictures stands once."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mllm_lit.backbones.pictures import numbered
from mllm_lit.data.collate import IGNORE, Collate, is_text, too_long
from mllm_lit.data.prompt import FormatError, Rendered
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


@dataclass
class _Row:
    """A row behind its prefix; true answer and end of the prompt start where the two part, or one token earlier."""

    ids: list[int]
    marked: list[bool]
    asked: list[int]

    def __post_init__(self) -> None:
        pairs = enumerate(zip(self.ids, self.asked, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(self.ids), len(self.asked)))
        # Generation takes in one token at least.
        self.common = min(same, len(self.asked) - 1)


class SharedCollate:
    """Turns samples into a :class:`SharedBatch`: the image processor sees what rows have in common once.

    Two rows have a prefix in common if they show the same pictures behind the same text. Rows without pictures have
    their first token in common. Every row is, token by token, what ``collate`` makes of it.

    Args:
        collate: The collator of whole rows.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate, self.format, self.processor = collate, collate.format, collate.processor
        self._marker: str = getattr(self.processor, "image_token", "") or ""
        self._ids = torch.tensor(sorted(collate.image_token_ids), dtype=torch.long)
        tokens = "|".join(map(re.escape, self.format.tokenizer.convert_ids_to_tokens(self._ids.tolist())))
        self._last = re.compile(rf".*((?:{tokens or '(?!)'}).*)", re.DOTALL)

    def __call__(self, samples: list[Sample]) -> SharedBatch:
        """Build a batch.

        Raises:
            ImageError: An image cannot be read.
            FormatError: A row cannot be rendered, exceeds ``max_length`` (nothing is ever cut), or the processor
                writes something else than its own format says.
        """
        rows = [self.format.render(sample) for sample in samples]
        keys = [
            (sample.images, row.prompt[: self._end(row)]) if sample.images else self.format.tokens(row)[0][0]
            for sample, row in zip(samples, rows, strict=True)
        ]
        group = numbered(keys)
        first = [group.index(number) for number in range(max(group) + 1)]
        shown = [i for i in first if samples[i].images]
        inputs, ends = self._encode([rows[i] for i in shown], [samples[i] for i in shown])
        written = {group[i]: end for i, end in zip(shown, ends, strict=True)}
        parts = [self._row(row, written.get(number)) for row, number in zip(rows, group, strict=True)]
        heads: list[dict[str, Tensor]] = []
        for i in first:
            if i in shown:
                heads.append(self._head(samples[i], parts[i], inputs, shown.index(i)))
            else:
                heads.append({"input_ids": torch.tensor([keys[i]]), "attention_mask": torch.ones(1, dtype=torch.long)})
        self._check(samples, parts, [len(heads[number]["input_ids"]) for number in group])
        prefixes = {name: value for name, value in inputs.items() if not is_text(name)}
        for name in dict.fromkeys(name for head in heads for name in head):
            filled = [head.get(name, torch.zeros_like(head["input_ids"])) for head in heads]
            prefixes[name] = _stacked(filled, self._padding if name == "input_ids" else 0)
        pictures = numbered([ref for i in shown for ref in samples[i].images])
        return self._batch(list(samples), prefixes, pictures, group, parts)

    def _end(self, row: Rendered) -> int:
        """Where the marker of the last picture ends."""
        return row.prompt.rindex(self._marker) + len(self._marker)

    @property
    def _padding(self) -> int:
        return self.format.tokenizer.pad_token_id or 0

    def _encode(self, rows: list[Rendered], samples: list[Sample]) -> tuple[dict[str, Tensor], list[str]]:
        """What the processor makes of rows with pictures, and what it writes for the last one, from its last token."""
        if not rows:
            return {}, []
        encoded = self.processor(
            **self.format.arguments(rows),
            images=self.collate.load(samples),
            padding=True,
            padding_side="left",
            return_tensors="pt",
            return_text_replacement_offsets=True,
        )
        ends = []
        for sample, replaced in zip(samples, encoded["text_replacement_offsets"], strict=True):
            found = self._last.fullmatch(replaced[-1]["replacement"]) if len(replaced) == len(sample.images) else None
            if found is None:
                raise FormatError(
                    f"{sample.origin or sample.id}: the processor put {len(replaced)} texts into the row for "
                    f"{len(sample.images)} pictures, or no image token among them."
                )
            ends.append(found[1])
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}, ends

    def _row(self, row: Rendered, written: str | None) -> _Row:
        cut = 1
        if written is not None:
            # A picture's token is a border for the tokenizer: what stands ahead of it changes nothing behind.
            end = self._end(row)
            moved = tuple((start + len(written) - end, stop + len(written) - end) for start, stop in row.spans)
            row = Rendered(written + row.prompt[end:], written + row.text[end:], moved)
        ids, marked = self.format.tokens(row)
        if written is not None:
            cut = int(torch.isin(torch.tensor(ids), self._ids).nonzero().max()) + 1
        return _Row(ids[cut:], marked[cut:], self.format.prompt_tokens(row)[cut:])

    def _head(self, sample: Sample, part: _Row, inputs: dict[str, Tensor], place: int) -> dict[str, Tensor]:
        """A row of the processor's up to its last image token, without padding."""
        ids = inputs["input_ids"][place]
        end = int(torch.isin(ids, self._ids).nonzero().max()) + 1
        if ids[end:].tolist() != part.ids:
            raise FormatError(
                f"{sample.origin or sample.id}: the processor wrote the tokens {ids[end:].tolist()} behind the "
                f"pictures, and not {part.ids} as its tokenizer does."
            )
        start = len(ids) - int(inputs["attention_mask"][place].sum())
        return {name: value[place, start:end] for name, value in inputs.items() if is_text(name)}

    def _check(self, samples: Sequence[Sample], parts: Sequence[_Row], heads: Sequence[int]) -> None:
        for sample, part, head in zip(samples, parts, heads, strict=True):
            if (limit := self.collate.max_length) is not None and head + len(part.ids) > limit:
                raise FormatError(too_long(sample, head + len(part.ids), limit))
            if part.common < 0 or part.marked[0]:
                raise FormatError(
                    f"{sample.origin or sample.id}: no token stands between the pictures and what the model writes."
                )

    def _batch(
        self,
        samples: list[Sample],
        prefixes: dict[str, Tensor],
        pictures: tuple[int, ...],
        group: tuple[int, ...],
        parts: list[_Row],
    ) -> SharedBatch:
        behind = max(part.common for part in parts)
        answer = max(len(part.ids) - part.common for part in parts)
        end = max(len(part.asked) - part.common for part in parts)
        length = prefixes["input_ids"].shape[1] + behind + end
        rows: dict[str, list[Tensor]] = {name: [] for name in ("rest", "rest_mask", "labels", "prompt", "end_mask")}
        for number, part in zip(group, parts, strict=True):
            room = (behind - part.common, answer - len(part.ids) + part.common)
            ids = torch.tensor(part.ids)
            rows["rest"].append(nn.functional.pad(ids, room, value=self._padding))
            rows["rest_mask"].append(nn.functional.pad(torch.ones_like(ids), room))
            marked = torch.where(torch.tensor(part.marked), ids, IGNORE)
            rows["labels"].append(nn.functional.pad(marked, room, value=IGNORE))
            head = prefixes["input_ids"][number][prefixes["attention_mask"][number].bool()]
            whole = torch.cat([head, torch.tensor(part.asked)])
            # Not the padding's token: a repetition penalty would count it as said.
            rows["prompt"].append(nn.functional.pad(whole, (length - len(whole), 0), value=int(whole[0])))
            last = torch.ones(len(part.asked) - part.common, dtype=torch.long)
            rows["end_mask"].append(nn.functional.pad(last, (end - len(last), 0)))
        stacked = {name: torch.stack(values) for name, values in rows.items()}
        return SharedBatch(samples, prefixes, pictures, torch.tensor(group), answer=answer, **stacked)


def _stacked(rows: Sequence[Tensor], padding: int) -> Tensor:
    longest = max(map(len, rows))
    return torch.stack([nn.functional.pad(row, (longest - len(row), 0), value=padding) for row in rows])
