"""Samples -> one padded batch, with labels on the answer's tokens only."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mllm_lit.data.images import load_image
from mllm_lit.data.pictures import numbered
from mllm_lit.data.prompt import ChatFormat, FormatError, Rendered
from mllm_lit.data.sample import Sample

IGNORE = -100
"""Label of a position without loss."""


@dataclass
class Batch:
    """What a step takes in.

    Attributes:
        inputs: Keyword arguments of the model: ``input_ids`` and ``attention_mask`` of shape (B, T), pixels, ...
        labels: (B, T); the answer's token ids where the loss is taken, else ``IGNORE``. Padding is on the left, so
            the labels of all rows end together.
        samples: The B rows.
        tokens: Positions that are not padding, over all rows.
        prompt: Like ``inputs`` without the answers, for generation; ``None`` in training.
        pictures: For each image, in the order of the pixels, the number of the picture that it shows; see
            :func:`mllm_lit.data.pictures.encoded_once`.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    samples: list[Sample]
    tokens: int
    prompt: dict[str, Tensor] | None = None
    pictures: tuple[int, ...] = ()

    def to(self, device: torch.device, non_blocking: bool = False) -> "Batch":
        """Copy to a device (the protocol by which Lightning moves batches)."""

        def move(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v.to(device, non_blocking=non_blocking) for k, v in tensors.items()}

        prompt = None if self.prompt is None else move(self.prompt)
        labels = self.labels.to(device, non_blocking=non_blocking)
        return replace(self, inputs=move(self.inputs), labels=labels, prompt=prompt)

    def __len__(self) -> int:
        return len(self.samples)


class Collate:
    """Turns a list of samples into a :class:`Batch`.

    Args:
        processor: The model's processor.
        max_length: Longest sequence, in tokens, image tokens counted in; ``None`` for no limit.
        with_prompt: Also build the inputs for generation.
    """

    def __init__(self, processor: Any, max_length: int | None = None, with_prompt: bool = False) -> None:
        self.processor = processor
        self.format = ChatFormat(processor)
        self.max_length = max_length
        self.with_prompt = with_prompt
        self.image_token_id: int | None = None
        if self.format.image_token is not None:
            self.image_token_id = self.format.tokenizer.convert_tokens_to_ids(self.format.image_token)

    def __call__(self, samples: list[Sample]) -> Batch:
        """Build a batch.

        Raises:
            ImageError: An image cannot be read.
            FormatError: A row cannot be rendered, exceeds ``max_length`` (nothing is ever cut), or its image tokens
                were lost on the way.
        """
        turns = [self.format.turn(sample) for sample in samples]
        refs = {ref: sample.origin or sample.id for sample in reversed(samples) for ref in sample.images}
        decoded = {ref: load_image(ref, where) for ref, where in refs.items()}
        images = [[decoded[ref] for ref in sample.images] for sample in samples]
        inputs = self._encode([turn.text for turn in turns], images)
        labels = torch.full_like(inputs["input_ids"], IGNORE)
        length = labels.shape[1]
        for row, (sample, turn) in enumerate(zip(samples, turns, strict=True)):
            stop = length - turn.tail
            span = slice(stop - len(turn.label_ids), stop)
            if inputs["input_ids"][row, span].tolist() != list(turn.label_ids):
                raise FormatError(
                    f"{sample.origin or sample.id}: the processor changed the answer's tokens "
                    f"({turn.label_ids} became {inputs['input_ids'][row, span].tolist()}), so labels cannot be placed."
                )
            labels[row, span] = inputs["input_ids"][row, span]
        self._check(samples, inputs)
        prompt = self._encode([turn.prompt for turn in turns], images) if self.with_prompt else None
        pictures = numbered([ref for sample in samples for ref in sample.images])
        return Batch(inputs, labels, list(samples), int(inputs["attention_mask"].sum()), prompt, pictures)

    def _encode(self, texts: list[str], images: list[list[Any]]) -> dict[str, Tensor]:
        arguments: dict[str, Any] = {"text": texts, "padding": True, "padding_side": "left", "return_tensors": "pt"}
        if any(images):
            arguments["images"] = images if all(images) else [image for row in images for image in row]
        encoded = self.processor(**arguments, add_special_tokens=False)
        return {key: value for key, value in encoded.items() if isinstance(value, Tensor)}

    def _check(self, samples: Sequence[Sample], inputs: dict[str, Tensor]) -> None:
        lengths = inputs["attention_mask"].sum(1).tolist()
        for sample, length in zip(samples, lengths, strict=True):
            if self.max_length is not None and length > self.max_length:
                raise FormatError(too_long(sample, length, self.max_length))
        if self.image_token_id is None:
            return
        marks = (inputs["input_ids"] == self.image_token_id).sum(1).tolist()
        for sample, found in zip(samples, marks, strict=True):
            if bool(found) != bool(sample.images):
                raise FormatError(
                    f"{sample.origin or sample.id}: sample {sample.id!r} has {len(sample.images)} image(s), but "
                    f"{found} "
                    "image tokens came out of the processor. Check that the chat template writes one image marker "
                    "per image and that the processor's patch_size and image size match the vision encoder."
                )


def too_long(sample: Sample, length: int, limit: int) -> str:
    """The error text for a row of ``length`` tokens that does not fit into ``limit``."""
    return (
        f"{sample.origin or sample.id}: sample {sample.id!r} has {length} tokens (prompt, image tokens and answer), "
        f"more than the limit of {limit}. Nothing is cut. Raise model.backbone.max_length (up to what the language "
        "model was trained for), shorten the row, or leave it out with data.ids."
    )


def check_turns(samples: Sequence[Sample], collate: Collate) -> list[int]:
    """Render and measure every row, before the first step.

    Only the first row with an image is read whole; it tells how many tokens an image becomes. Where that number
    differs from image to image, the collator checks each row again with its own.

    Args:
        samples: Rows of one split.
        collate: The collator that will batch them.

    Returns:
        Each row's length in tokens.

    Raises:
        FormatError: Rows that cannot be rendered or do not fit, up to ten of them named.
        ImageError: The first image cannot be read.
    """
    first = next((sample for sample in samples if sample.images), None)
    image_tokens = 0
    if first is not None and collate.image_token_id is not None:
        ids = collate([first]).inputs["input_ids"]
        image_tokens = int((ids == collate.image_token_id).sum()) // len(first.images)
    faults: list[str] = []
    turns: list[Rendered] = []
    for sample in samples:
        try:
            turns.append(collate.format.turn(sample))
        except FormatError as error:
            faults.append(str(error))
    lengths: list[int] = []
    if not faults:
        encoded = collate.format.tokenizer([turn.text for turn in turns], add_special_tokens=False)["input_ids"]
        for sample, ids in zip(samples, encoded, strict=True):
            length = len(ids) + len(sample.images) * (image_tokens - 1)
            lengths.append(length)
            if collate.max_length is not None and length > collate.max_length:
                faults.append(too_long(sample, length, collate.max_length))
    if faults:
        more = f"\n... and {len(faults) - 10} more" if len(faults) > 10 else ""
        raise FormatError("\n".join(faults[:10]) + more)
    return lengths
