"""The stateful side of every scorer: texts in, points out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torchmetrics import Metric

from mllm_lit.data.sample import Sample


class AnswerMetric(Metric):
    """Scores generated answers of a whole split.

    Subclasses keep sums, or gather strings over ranks, so that the result on N ranks is the result on one.
    """

    headline: ClassVar[str]
    """The entry of :meth:`compute` that a table shows."""
    full_state_update: ClassVar[bool] = False

    @abstractmethod
    def update(self, predictions: Sequence[str], samples: Sequence[Sample]) -> None:
        """Take in the generated texts and the rows they answer, pairwise."""

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """Scores over everything seen, in points (0-100; CIDEr x 100), ``headline`` among them."""

    @abstractmethod
    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """Each row's own score in [0, 1], or ``None`` where the score is only defined over a split (CIDEr)."""
