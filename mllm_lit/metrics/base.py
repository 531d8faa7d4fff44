"""The stateful side of every scorer: texts in, points out."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import nn
from torchmetrics import Metric

from mllm_lit.data.sample import Sample


class AnswerMetric(Metric):
    """Scores generated answers of a whole split.

    The state is one record per row, under the row's id. Ranks exchange their records when the score is computed, and
    a row seen twice (a sampler that pads the last batch) counts once, so the result on N ranks is the result on one.
    """

    headline: str
    """The entry of :meth:`compute` that a table shows."""
    full_state_update: bool | None = False
    rows: list[tuple[str, Any]]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", default=[], dist_reduce_fx=None)

    def update(self, predictions: Sequence[str], samples: Sequence[Sample]) -> None:
        """Take in the generated texts and the rows they answer, pairwise.

        Raises:
            ValueError: There are more of one than of the other.
        """
        if len(predictions) != len(samples):
            raise ValueError(f"{len(predictions)} predictions for {len(samples)} rows; they must be pairs")
        records = self.records(predictions, samples)
        self.rows.extend(zip((sample.id for sample in samples), records, strict=True))

    def compute(self) -> dict[str, float]:
        """Scores over everything seen, in points (0-100; CIDEr x 100), ``headline`` among them.

        Raises:
            RuntimeError: Nothing was seen.
        """
        if not self.rows:
            raise RuntimeError(f"{type(self).__name__} has no answer to score: the split is empty or was not generated")
        # In the order of the ids, so that sums of floats do not depend on which rank saw what.
        unique = dict(reversed(self.rows))
        return self.score([unique[key] for key in sorted(unique)])

    @abstractmethod
    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[Any]:
        """What :meth:`score` needs of each row; it is pickled to travel between ranks."""

    @abstractmethod
    def score(self, records: Sequence[Any]) -> dict[str, float]:
        """The scores, in points, over the records of a whole split."""

    @abstractmethod
    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """Each row's own score in [0, 1], or ``None`` where the score is only defined over a split (CIDEr)."""

    def of_nll(self, nll: float) -> dict[str, float]:
        """Scores that follow from the mean NLL of all answers' tokens."""
        return {}

    def labels(self, sample: Sample) -> tuple[str, ...]:
        """What results are broken down by, such as the type of the question."""
        return ()

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:
        # torchmetrics gathers tensors only, and the records are texts.
        group = process_group or self.process_group
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, self.rows, group=group)
        self.rows = [row for rank in gathered for row in rank]

    def _apply(self, fn: Any, exclude_state: Sequence[str] = "") -> nn.Module:
        return super()._apply(fn, exclude_state=["rows", *exclude_state])


Row = tuple[float, float | None, tuple[str, ...]]
"""Score, relaxed score and labels."""


class MeanScore(AnswerMetric):
    """The mean of a score that each row has of its own, also per value of some of the rows' ``meta`` entries.

    Where the rows have a relaxed score as well, its mean is reported as ``headline_relaxed``, beside the strict one.

    Args:
        breakdown: Names of ``meta`` entries. An entry may hold several labels, joined by ``|``.
            The score of the rows with a label is reported as ``headline/label``.
    """

    def __init__(self, breakdown: Sequence[str] = ()) -> None:
        super().__init__()
        self.breakdown = tuple(breakdown)

    @abstractmethod
    def row_score(self, prediction: str, sample: Sample) -> float:
        """One answer's score in [0, 1]."""

    def relaxed_score(self, prediction: str, sample: Sample) -> float | None:
        """One answer's score in [0, 1] if all that counts is that the right one is in it; ``None`` for no such score.

        Where the strict score is higher, that one is taken.
        """
        return None

    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """Each row's own score in [0, 1]."""
        return [self.row_score(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]

    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[Row]:
        """Score, relaxed score and labels of each row."""
        return [self._row(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]

    def _row(self, prediction: str, sample: Sample) -> Row:
        score, relaxed = self.row_score(prediction, sample), self.relaxed_score(prediction, sample)
        return score, None if relaxed is None else max(score, relaxed), self.labels(sample)

    def labels(self, sample: Sample) -> tuple[str, ...]:
        """Of all ``meta`` entries of the breakdown."""
        values = (sample.meta.get(key, "") for key in self.breakdown)
        return tuple(label for value in values for label in value.split("|") if label)

    def score(self, records: Sequence[Row]) -> dict[str, float]:
        """The mean over all rows, strict and relaxed, and over the rows of each label."""
        groups: dict[str, list[float]] = {}
        for value, _, labels in records:
            for label in labels:
                groups.setdefault(label, []).append(value)
        scores = {self.headline: 100 * sum(value for value, _, _ in records) / len(records)}
        relaxed = [value for _, value, _ in records if value is not None]
        if relaxed:
            scores[f"{self.headline}_relaxed"] = 100 * sum(relaxed) / len(relaxed)
        return scores | {
            f"{self.headline}/{label.replace('/', '-')}": 100 * sum(values) / len(values)
            for label, values in sorted(groups.items())
        }
