"""Rows taken apart: what they have in common up to the end of their pictures, and what follows in each of them."""

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from mllm_lit.backbones.pictures import numbered
from mllm_lit.data.collate import Collate, is_text, too_long
from mllm_lit.data.prompt import FormatError, Rendered
from mllm_lit.data.sample import Sample

Sharing = Literal["all", "pictures", "nothing"]
"""Whose prefixes may be one: those of all rows, of rows with pictures, or of none."""


@dataclass
class Rest:
    """A row behind its prefix.

    Attributes:
        ids: Token ids of the row.
        marked: Which of them are labelled.
        asked: Token ids of the prompt.
        common: How many tokens row and prompt have in common; at least one of the prompt's is not counted, because
            generation has to take one in.
    """

    ids: list[int]
    marked: list[bool]
    asked: list[int]

    def __post_init__(self) -> None:
        pairs = enumerate(zip(self.ids, self.asked, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(self.ids), len(self.asked)))
        self.common = min(same, len(self.asked) - 1)


@dataclass
class Parts:
    """B rows that begin with one of G prefixes.

    Attributes:
        samples: The B rows.
        group: For each row, the number of its prefix.
        heads: For each prefix, token ids, mask and what else has an entry per token, without padding.
        pixels: What else the model is given, as the processor makes it of the prefixes in their order.
        pictures: As in :class:`~mllm_lit.data.collate.Batch`, for the pictures of the prefixes.
        rests: The B rows behind their prefixes.
    """

    samples: list[Sample]
    group: tuple[int, ...]
    heads: list[dict[str, Tensor]]
    pixels: dict[str, Tensor]
    pictures: tuple[int, ...]
    rests: list[Rest]

    def with_prompts(self) -> "Parts":
        """The same rows, if those of a prefix have their prompt in common: prefixes go up to its last token."""
        heads, rests = list(self.heads), list(self.rests)
        for number, head in enumerate(self.heads):
            own = [i for i, of in enumerate(self.group) if of == number]
            # What the first label is predicted from stays in the row.
            count = min(min(rests[i].common, rests[i].marked.index(True) - 1) for i in own)
            ids = torch.tensor(rests[own[0]].ids[:count], dtype=torch.long)
            more = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            heads[number] = {n: torch.cat([value, more.get(n, torch.zeros_like(ids))]) for n, value in head.items()}
            for i in own:
                rests[i] = Rest(rests[i].ids[count:], rests[i].marked[count:], rests[i].asked[count:])
        return replace(self, heads=heads, rests=rests)


class Prefixes:
    """Takes rows apart, so that the processor sees what they have in common once.

    Two rows have a prefix in common if they show the same pictures behind the same text. Of a row without pictures
    it is the first token. Every row is, token by token, what ``collate`` makes of it.

    Args:
        collate: The collator of whole rows.
    """

    def __init__(self, collate: Collate) -> None:
        self.collate, self.format, self.processor = collate, collate.format, collate.processor
        self._marker: str = getattr(self.processor, "image_token", "") or ""
        self._ids = torch.tensor(sorted(collate.image_token_ids), dtype=torch.long)
        tokens = "|".join(map(re.escape, self.format.tokenizer.convert_ids_to_tokens(self._ids.tolist())))
        self._last = re.compile(rf".*((?:{tokens or '(?!)'}).*)", re.DOTALL)

    def key(self, sample: Sample, row: Rendered) -> Hashable:
        """Equal for rows that have a prefix in common."""
        return (sample.images, row.prompt[: self._end(row)]) if sample.images else self.format.tokens(row)[0][0]

    def from_last_token(self, written: str) -> str | None:
        """What a processor writes for a picture, from its last image token on; ``None`` if there is none."""
        found = self._last.fullmatch(written)
        return found[1] if found else None

    def behind(self, row: Rendered, written: str) -> Rendered:
        """A row with pictures from its last image token on.

        Args:
            row: The row.
            written: What :meth:`from_last_token` gives for the last picture.
        """
        end = self._end(row)
        moved = tuple((start + len(written) - end, stop + len(written) - end) for start, stop in row.spans)
        return Rendered(written + row.prompt[end:], written + row.text[end:], moved)

    def __call__(self, samples: Sequence[Sample], share: Sharing | Sequence[int] = "all") -> Parts:
        """Take rows apart.

        Args:
            samples: The rows.
            share: Whose prefixes are one where they are equal; or for each row the number of a prefix, from 0 up.

        Raises:
            ImageError: An image cannot be read.
            FormatError: A row cannot be rendered, exceeds ``max_length`` (nothing is ever cut), or the processor
                writes something else than its own format says.
        """
        rows = [self.format.render(sample) for sample in samples]
        if isinstance(share, str):
            together = [share == "all" or (share == "pictures" and bool(sample.images)) for sample in samples]
            every = enumerate(zip(samples, rows, together, strict=True))
            group = numbered([self.key(sample, row) if shared else i for i, (sample, row, shared) in every])
        else:
            group = tuple(share)
        first = [group.index(number) for number in range(max(group) + 1)]
        shown = [i for i in first if samples[i].images]
        inputs, ends = self._encode([rows[i] for i in shown], [samples[i] for i in shown])
        written = {group[i]: end for i, end in zip(shown, ends, strict=True)}
        rests = [self._rest(row, written.get(number)) for row, number in zip(rows, group, strict=True)]
        heads = [
            self._head(samples[i], rests[i], inputs, shown.index(i)) if samples[i].images else self._start(rows[i])
            for i in first
        ]
        self._check(samples, rests, [len(heads[number]["input_ids"]) for number in group])
        pixels = {name: value for name, value in inputs.items() if not is_text(name)}
        pictures = numbered([ref for i in shown for ref in samples[i].images])
        return Parts(list(samples), group, heads, pixels, pictures, rests)

    def _end(self, row: Rendered) -> int:
        """Where the marker of the last picture ends."""
        return row.prompt.rindex(self._marker) + len(self._marker)

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
            complete = len(replaced) == len(sample.images)
            end = self.from_last_token(replaced[-1]["replacement"]) if complete else None
            if end is None:
                raise FormatError(
                    f"{sample.origin or sample.id}: the processor put {len(replaced)} texts into the row for "
                    f"{len(sample.images)} pictures, or no image token among them."
                )
            ends.append(end)
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}, ends

    def _rest(self, row: Rendered, written: str | None) -> Rest:
        cut = 1
        if written is not None:
            # A picture's token is a border for the tokenizer: what stands ahead of it changes nothing behind.
            row = self.behind(row, written)
        ids, marked = self.format.tokens(row)
        if written is not None:
            cut = self.behind_pictures(ids)
        return Rest(ids[cut:], marked[cut:], self.format.prompt_tokens(row)[cut:])

    def behind_pictures(self, ids: Sequence[int] | Tensor) -> int:
        """Place of the first token behind the last image token."""
        return int(torch.isin(torch.as_tensor(ids), self._ids).nonzero().max()) + 1

    def _head(self, sample: Sample, rest: Rest, inputs: dict[str, Tensor], place: int) -> dict[str, Tensor]:
        """A row of the processor's up to its last image token, without padding."""
        ids = inputs["input_ids"][place]
        end = self.behind_pictures(ids)
        if ids[end:].tolist() != rest.ids:
            raise FormatError(
                f"{sample.origin or sample.id}: the processor wrote the tokens {ids[end:].tolist()} behind the "
                f"pictures, and not {rest.ids} as its tokenizer does."
            )
        start = len(ids) - int(inputs["attention_mask"][place].sum())
        return {name: value[place, start:end] for name, value in inputs.items() if is_text(name)}

    def _start(self, row: Rendered) -> dict[str, Tensor]:
        ids = torch.tensor(self.format.tokens(row)[0][:1])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def _check(self, samples: Sequence[Sample], rests: Sequence[Rest], heads: Sequence[int]) -> None:
        for sample, rest, head in zip(samples, rests, heads, strict=True):
            if (limit := self.collate.max_length) is not None and head + len(rest.ids) > limit:
                raise FormatError(too_long(sample, head + len(rest.ids), limit))
            if rest.common < 0 or rest.marked[0]:
                raise FormatError(
                    f"{sample.origin or sample.id}: no token stands between the pictures and what the model writes."
                )
