"""Samples -> one padded batch, with labels on the answer's tokens only."""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from mllm_lit.backbones.pictures import numbered
from mllm_lit.data.images import load_image
from mllm_lit.data.prompt import ChatFormat, FormatError, Rendered, chat_format
from mllm_lit.data.sample import Sample

IGNORE = -100
"""Label of a position without loss."""


@dataclass
class _OnDevice:
    def to(self, device: torch.device, non_blocking: bool = False) -> Self:
        """Copy to a device."""
        moved = {one.name: getattr(self, one.name).to(device, non_blocking=non_blocking) for one in fields(self)}
        return replace(self, **moved)


@dataclass
class Labelled(_OnDevice):
    """The N tokens of a batch that the loss is taken on, found on the host: a device is not waited for.

    Attributes:
        places: (N,); where the position ahead of each is in the flattened inputs.
        ids: (N,); the tokens.
        rows: (N,); numbers of the rows that they belong to.
        counts: (B,); how many each row has.
    """

    places: Tensor
    ids: Tensor
    rows: Tensor
    counts: Tensor

    @classmethod
    def of(cls, labels: Tensor, rows: Tensor, count: int) -> "Labelled":
        """Find them.

        Args:
            labels: (S, T), ``IGNORE`` in the first column.
            rows: (S, T); number of the row that each position belongs to.
            count: Of the rows.
        """
        line, place = (labels[:, 1:] != IGNORE).nonzero(as_tuple=True)
        owners = rows[line, place + 1]
        return cls(line * labels.shape[1] + place, labels[line, place + 1], owners, owners.bincount(minlength=count))


@dataclass
class Packing(_OnDevice):
    """How rows lie in sequences: which positions belong to what, (S, T) each.

    Attributes:
        start: Place in the sequence of the first token of the prefix that a position is in or behind; of padding, its
            own place.
        row: Number of the row that a position belongs to; -1 in a prefix, which all rows behind it see.
        skipped: How many tokens of other rows lie between the prefix and a position.
    """

    start: Tensor
    row: Tensor
    skipped: Tensor


@dataclass
class Batch:
    """What a step takes in: a sequence a row, or, with ``packing``, sequences of rows that do not see each other.

    Attributes:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` of shape (S, T), pixels, ...
        labels: (S, T); the answer's token ids where the loss is taken, else ``IGNORE``.
        samples: The B rows.
        tokens: Positions that are not padding, over all rows.
        prompt: Like ``inputs`` without the answers, for generation; ``None`` in training.
        pictures: For each image, in the order of the pixels, the number of the picture that it shows; see
            :func:`mllm_lit.backbones.pictures.encoded_once`.
        packing: ``None`` where each row is a sequence of its own, padded on the left.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    samples: list[Sample]
    tokens: int
    prompt: dict[str, Tensor] | None = None
    pictures: tuple[int, ...] = ()
    packing: Packing | None = None
    _found: tuple[Labelled, Tensor, int] | None = field(default=None, init=False, repr=False)
    """The labelled tokens, of which labels, and how often those had been written to."""

    row_order: tuple[int, ...] = field(default=(), init=False)
    """Numbers of the rows in the order in which their answer tokens stand in :attr:`labelled`."""

    def __post_init__(self) -> None:
        self.row_order = tuple(torch.unique_consecutive(self.labelled.rows).tolist())  # here, on the host

    @property
    def labelled(self) -> Labelled:
        """The tokens that the loss is taken on; found anew where the labels have been changed."""
        if self._found is None or self._found[1] is not self.labels or self._found[2] != _writes(self.labels):
            alone = torch.arange(len(self.labels), device=self.labels.device)[:, None].expand_as(self.labels)
            rows = alone if self.packing is None else self.packing.row
            found = Labelled.of(self.labels, rows, len(self.samples) or len(self.labels))
            self._found = (found, self.labels, _writes(self.labels))
        return self._found[0]

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Copy to a device (the protocol by which Lightning moves batches)."""

        moved: dict[int, Tensor] = {}  # Prompts and whole rows share their pixels.

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            for tensor in tensors.values():
                if id(tensor) not in moved:
                    moved[id(tensor)] = tensor.to(device, non_blocking=non_blocking)
            return {name: moved[id(tensor)] for name, tensor in tensors.items()}

        prompt = None if self.prompt is None else move(self.prompt)
        moved_batch = copy(self)
        moved_batch.inputs, moved_batch.prompt = move(self.inputs), prompt
        moved_batch.labels = self.labels.to(device, non_blocking=non_blocking)
        moved_batch.packing = None if self.packing is None else self.packing.to(device, non_blocking)
        labelled = self.labelled.to(device, non_blocking)
        moved_batch._found = (labelled, moved_batch.labels, _writes(moved_batch.labels))
        return moved_batch

    def __len__(self) -> int:
        return len(self.samples)


def _writes(tensor: Tensor) -> int:
    """How often a tensor has been written to; those of inference mode do not count it."""
    return 0 if tensor.is_inference() else tensor._version


class Collate:
    """Turns a list of samples into a :class:`Batch`; every row is as it would be alone.

    Args:
        processor: The model's processor.
        max_length: Longest sequence, in tokens, image tokens counted in; ``None`` for no limit.
        with_prompt: Also build the inputs for generation.
    """

    def __init__(self, processor: Any, max_length: int | None = None, with_prompt: bool = False) -> None:
        self.processor = processor
        self.format: ChatFormat = chat_format(processor)
        self.max_length = max_length
        self.with_prompt = with_prompt
        ids = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
        self.image_token_ids: frozenset[int] = frozenset(ids) - {None}
        """Tokens that stand for a part of a picture."""

    def __call__(self, samples: list[Sample]) -> Batch:
        """Build a batch.

        Raises:
            ImageError: An image cannot be read.
            FormatError: A row cannot be rendered, exceeds ``max_length`` (nothing is ever cut), or its image tokens
                were lost on the way.
        """
        rows = [self.format.render(sample) for sample in samples]
        inputs = self.encode(rows, self.load(samples))
        self._check(samples, inputs)
        parts = [self.format.tokens(row) for row in rows]
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        for row, (sample, (ids, marked)) in enumerate(zip(samples, parts, strict=True)):
            # Pictures come before the first answer, so behind it a row is what it was before they were put in.
            first = marked.index(True)
            end = inputs["input_ids"][row, first - len(ids) :]
            if end.tolist() != ids[first:]:
                raise FormatError(
                    f"{sample.origin or sample.id}: the processor changed the answer's tokens ({ids[first:]} became "
                    f"{end.tolist()}), so labels cannot be placed."
                )
            labels[row, first - len(ids) :] = torch.where(torch.tensor(marked[first:]), end, IGNORE)
        prompt = None
        if self.with_prompt:
            asked = [self.format.prompt_tokens(row) for row in rows]
            prompt = self._prompt(inputs, [ids for ids, _ in parts], asked)
        pictures = numbered([ref for sample in samples for ref in sample.images])
        return Batch(inputs, labels, list(samples), int(inputs["attention_mask"].sum()), prompt, pictures)

    def load(self, samples: list[Sample]) -> list[list[Any]]:
        """The pictures of every row, each decoded once."""
        refs = {ref: sample.origin or sample.id for sample in reversed(samples) for ref in sample.images}
        decoded = {ref: load_image(ref, where) for ref, where in refs.items()}
        return [[decoded[ref] for ref in sample.images] for sample in samples]

    def encode(self, rows: list[Rendered], images: list[list[Any]]) -> dict[str, Tensor]:
        """What the processor makes of rows with pictures and of rows without, as one batch."""
        places = [[i for i, shown in enumerate(images) if bool(shown) is wanted] for wanted in (True, False)]
        parts = []
        for chosen in filter(None, places):
            shown = [images[i] for i in chosen]
            pictures = {"images": shown} if any(shown) else {}
            parts.append(self._call(**self.format.arguments([rows[i] for i in chosen]), **pictures))
        order = torch.tensor([i for chosen in places for i in chosen]).argsort()
        longest = max(part["input_ids"].shape[1] for part in parts)
        batch: dict[str, Tensor] = {}
        for name in dict.fromkeys(name for part in parts for name in part):
            if is_text(name):
                filled = [self._filled(part, name, longest) for part in parts]
                batch[name] = torch.cat(filled)[order]
            else:
                batch[name] = next(part[name] for part in parts if name in part)
        return batch

    def _call(self, **arguments: Any) -> dict[str, Tensor]:
        encoded = self.processor(**arguments, padding=True, padding_side="left", return_tensors="pt")
        return {name: value for name, value in encoded.items() if isinstance(value, Tensor) and name != "labels"}

    def _filled(self, part: dict[str, Tensor], name: str, length: int) -> Tensor:
        value = part.get(name, torch.zeros_like(part["input_ids"]))
        return nn.functional.pad(value, (length - value.shape[1], 0), value=self.padding(name))

    def padding(self, name: str) -> int:
        """What an input that has an entry per token is padded with."""
        return (self.format.tokenizer.pad_token_id or 0) if name == "input_ids" else 0

    def _prompt(self, inputs: dict[str, Tensor], whole: list[list[int]], asked: list[list[int]]) -> dict[str, Tensor]:
        """The inputs without the last answers; the pixels are those of ``inputs``."""
        lengths = inputs["attention_mask"].sum(1).tolist()
        # All pictures lie in what a row and its prompt have in common; at its end a token may reach into the answer.
        common = [
            next((i for i, (a, b) in enumerate(zip(ids, start, strict=False)) if a != b), min(len(ids), len(start)))
            for ids, start in zip(whole, asked, strict=True)
        ]
        kept = [length - len(ids) + same for length, ids, same in zip(lengths, whole, common, strict=True)]
        sizes = [n + len(ids) - same for n, ids, same in zip(kept, asked, common, strict=True)]
        prompt = {name: value for name, value in inputs.items() if not is_text(name)}
        for name in filter(is_text, inputs):
            rows = []
            for row, value in enumerate(inputs[name]):
                start = value[len(value) - lengths[row] :][: kept[row]]
                rest = torch.tensor(asked[row][common[row] :], dtype=value.dtype)
                more = rest if name == "input_ids" else torch.full_like(rest, int(name == "attention_mask"))
                rows.append(
                    nn.functional.pad(torch.cat([start, more]), (max(sizes) - sizes[row], 0), value=self.padding(name))
                )
            prompt[name] = torch.stack(rows)
        return prompt

    def _check(self, samples: Sequence[Sample], inputs: dict[str, Tensor]) -> None:
        lengths = inputs["attention_mask"].sum(1).tolist()
        for sample, length in zip(samples, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise FormatError(too_long(sample, length, self.max_length))
        if not self.image_token_ids:
            return
        marks = torch.isin(inputs["input_ids"], torch.tensor([*self.image_token_ids])).sum(1).tolist()
        for sample, found in zip(samples, marks, strict=True):
            if bool(found) != bool(sample.images):
                raise FormatError(
                    f"{sample.origin or sample.id}: sample {sample.id!r} has {len(sample.images)} image(s), but "
                    f"{found} image tokens came out of the processor. Check that the chat template writes one image "
                    "marker per image and that the processor's patch_size and image size match the vision encoder."
                )


def is_text(name: str) -> bool:
    """Whether an input of a model has an entry per token, (B, T), and not per picture."""
    return name == "attention_mask" or name.endswith("_ids")


def too_long(sample: Sample, length: int, limit: int) -> str:
    """The error text for a row of ``length`` tokens that does not fit into ``limit``."""
    return (
        f"{sample.origin or sample.id}: sample {sample.id!r} has {length} tokens (prompt, image tokens and answer), "
        f"more than the limit of {limit}. Nothing is cut. Raise model.backbone.max_length (up to what the language "
        "model was trained for), shorten the row, or leave it out with data.ids."
    )
