"""What a dataset family has to say for itself."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mllm_lit.data.sample import Sample

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class DatasetError(Exception):
    """A dataset is missing, incomplete or malformed; the message names the file, the row and the remedy."""


class Task(ABC):
    """A dataset family: how its official release is read, asked and scored.

    Args:
        prompt: Template of the user's turn, over the fields named in the class's docstring;
            ``None`` takes the class's ``default_prompt``.
    """

    name: ClassVar[str]
    default_prompt: ClassVar[str]
    published_at: ClassVar[str]
    """Where the official release is to be had."""
    expected_tree: ClassVar[str]
    """The layout of a root folder, as printed in an error."""
    split_names: ClassVar[dict[str, str]] = {"train": "train", "val": "val", "test": "test"}
    """The publisher's name of the split that plays each role."""
    max_new_tokens: ClassVar[int] = 16

    def __init__(self, prompt: str | None = None) -> None:
        self.prompt = prompt if prompt is not None else self.default_prompt

    @abstractmethod
    def rows(self, root: Path, split: str) -> list[Sample]:
        """Read one split, named as the publisher names it, in the publisher's order.

        Raises:
            DatasetError: A file is missing (the message holds the expected tree), the split is unknown
                (it lists those there are), or a row is malformed (it names file and row).
        """

    @abstractmethod
    def metric(self) -> "AnswerMetric":
        """A fresh scorer of this task."""
