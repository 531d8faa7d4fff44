"""What a dataset family has to say for itself."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from pathlib import Path
from string import Formatter
from typing import TYPE_CHECKING, ClassVar

from mllm_lit.data.faults import DatasetError, Fault
from mllm_lit.data.sample import Sample

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

__all__ = ["DatasetError", "Fault", "Task"]


class Task(ABC):
    """A dataset family: how its official release is read, asked and scored.

    Args:
        prompt: Template of the user's turn, over the fields named in the class's docstring;
            ``None`` takes the class's ``default_prompt``.

    Raises:
        ValueError: The template uses a field that the task does not have.
    """

    name: str
    default_prompt: ClassVar[str]
    prompt_fields: tuple[str, ...] = ("question",)
    """What a template may use."""
    published_at: ClassVar[str]
    """Where the official release is to be had."""
    expected_tree: ClassVar[str]
    """The layout of a root folder, as printed in an error."""
    split_names: dict[str, str] = {"train": "train", "val": "val", "test": "test"}
    """The publisher's name of the split that plays each role (an instance may differ from its class)."""
    has_train_split: ClassVar[bool] = True
    has_root: ClassVar[bool] = True
    """Whether a root says where its data are."""
    takes_files: ClassVar[bool] = False
    """Whether a root may be a file, or a data set of the Hugging Face hub."""
    max_new_tokens: int = 16
    generates: ClassVar[bool] = True
    """Whether answers are generated. If not, a row's answer is the most likely one of its choices, and where it has
    none the NLL of its own answer alone is measured."""

    def __init__(self, prompt: str | None = None) -> None:
        self.prompt = prompt if prompt is not None else self.default_prompt
        self.check_template(self.prompt)

    def check_template(self, template: str) -> None:
        """Refuse a template with a field that this task cannot fill."""
        used = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
        unknown = sorted(used - set(self.prompt_fields))
        if unknown:
            known = ", ".join(f"{{{field}}}" for field in self.prompt_fields) or "none"
            raise ValueError(
                f"{self.name}: the prompt {template!r} uses unknown field(s) {unknown}; there are: {known}. "
                "Write a literal brace as {{ or }}."
            )

    def ask(self, **values: str) -> str:
        """The user's turn of one row."""
        return self.prompt.format(**values)

    def locate(self, root: Path, *candidates: str) -> Path:
        """The first of several relative paths that exists under ``root``.

        Raises:
            DatasetError: None exists; the message holds the expected tree and where the release is published.
        """
        for candidate in candidates:
            if (Path(root) / candidate).exists():
                return Path(root) / candidate
        wanted = " or ".join(candidates)
        state = "that folder has no" if Path(root).is_dir() else "there is no such folder; it should hold"
        raise DatasetError(
            f"{self.name}: looked in {root}: {state} {wanted}.\nExpected layout:\n{self.expected_tree.rstrip()}\n"
            f"Published at {self.published_at}. Point the data root at the folder that holds this tree."
        )

    def check_split(self, split: str, known: Iterable[str], where: Path | None = None) -> None:
        """Refuse a split that the release does not have, listing those it has and the file that lists them."""
        known = list(known)
        if split not in known:
            place = "" if where is None else f" ({where})"
            raise DatasetError(f"{self.name} has no split {split!r}; there are: {', '.join(known) or 'none'}{place}")

    @abstractmethod
    def rows(self, root: Path, split: str) -> list[Sample]:
        """Read one split, named as the publisher names it, in the publisher's order.

        Raises:
            DatasetError: A file is missing (the message holds the expected tree), the split is unknown
                (it lists those there are), or a row is malformed (it names file and row).
        """

    def training_rows(self, root: Path, split: str, scored: Collection[str]) -> list[Sample]:
        """The rows of a split that may be trained on.

        Args:
            root: As for :meth:`rows`.
            split: Likewise.
            scored: Splits that are evaluated; what is drawn from ``split`` for them is left out.

        Raises:
            DatasetError: As :meth:`rows` does.
        """
        return self.rows(root, split)

    def drawn(self, root: Path, scored: Collection[str]) -> str | None:
        """In a line, what is drawn from the training split for those that are evaluated; ``None`` for nothing."""
        return None

    @abstractmethod
    def metric(self) -> "AnswerMetric":
        """A fresh scorer of this task."""
