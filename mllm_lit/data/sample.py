"""One row of a dataset, in the form that every task, scorer and collator shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class EncodedImage:
    """An image that lives inside a table instead of a file (a parquet cell, say).

    Attributes:
        data: The encoded bytes (PNG, JPEG, ...).
        name: What to call it in an error message, such as ``train.parquet:17``.
    """

    data: bytes
    name: str


ImageRef = Path | EncodedImage


@dataclass(frozen=True)
class Sample:
    """A question about zero or more images, and what a good answer is.

    Attributes:
        id: Unique within its split.
        question: The user's turn, the task's prompt already applied; no image marker in it.
        answer: The text that is trained on (and whose NLL is measured).
        images: In the order in which the model sees them, ahead of the text; empty for text only.
        references: What the scorer compares against: ten annotators' answers, five captions, one label.
        choices: The options of a multiple-choice question, in the order shown; else empty.
        meta: Whatever the scorer breaks results down by (subject, grade, question type).
        origin: ``file:row`` of the row, for error messages.
        source: Name of the held-out source that a replayed training row is from; empty for the target's own rows.
    """

    id: str
    question: str
    answer: str
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    source: str = ""
