"""One row of a dataset, in the form that every task, scorer and collator shares."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


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
class Turn:
    """What one side says in a conversation.

    Attributes:
        role: Who speaks.
        text: What is said, a task's prompt already applied; no image marker in it.
    """

    role: Literal["system", "user", "assistant"]
    text: str


@dataclass(frozen=True)
class Sample:
    """A conversation about zero or more images, and what a good last answer is.

    Attributes:
        id: Unique within its split.
        turns: A system turn if there is one, then the user and the assistant in turn; the assistant speaks last. Every
            assistant's turn is trained on (and its NLL measured); the last one is generated and scored.
        images: In the order in which the model sees them, ahead of the first user turn's text; empty for text only.
        references: What the scorer compares against: ten annotators' answers, five captions, one label.
        choices: The options of a multiple-choice question, in the order shown; else empty.
        meta: Whatever the scorer breaks results down by (subject, grade, question type).
        origin: ``file:row`` of the row, for error messages.
        source: Name of the set that a replayed training row is from; empty for the target's own rows.
    """

    id: str
    turns: tuple[Turn, ...]
    images: tuple[ImageRef, ...] = ()
    references: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    meta: Mapping[str, str] = field(default_factory=dict)
    origin: str = ""
    source: str = ""

    @classmethod
    def single_turn(
        cls,
        id: str,
        question: str,
        answer: str,
        images: tuple[ImageRef, ...] = (),
        references: tuple[str, ...] = (),
        choices: tuple[str, ...] = (),
        meta: Mapping[str, str] | None = None,
        origin: str = "",
    ) -> "Sample":
        """One question and one answer."""
        turns = (Turn("user", question), Turn("assistant", answer))
        return cls(id, turns, images, references, choices, meta or {}, origin)

    @property
    def question(self) -> str:
        """The last user turn."""
        return self.turns[-2].text

    @property
    def answer(self) -> str:
        """The last assistant turn."""
        return self.turns[-1].text
