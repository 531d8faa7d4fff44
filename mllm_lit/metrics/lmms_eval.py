"""Scores that a task of lmms-eval gives to answers."""

from collections.abc import Callable, Sequence
from numbers import Real
from types import SimpleNamespace
from typing import Any

from mllm_lit.data.sample import Sample
from mllm_lit.errors import SettingError
from mllm_lit.metrics.base import AnswerMetric

Scored = dict[str, Any]
"""Of one answer: ``METRIC`` or ``METRIC,FILTER``, as lmms-eval writes them, and what is aggregated."""


class LmmsEvalScores(AnswerMetric):
    """The filters, ``process_results`` and ``aggregation`` of a task of lmms-eval.

    Args:
        task: The task.
        documents: From a split to its documents; samples say ``split`` and ``row`` in their ``meta``.
        scale: Points for 1 of its scores; ``None`` for 100 and a refusal of scores above 1.
        state: What changes if the task is scored otherwise.

    Raises:
        SettingError: Its first metric is computed elsewhere, from a file.
    """

    def __init__(self, task: Any, documents: Callable[[str], Any], scale: float | None = None, state: str = "") -> None:
        super().__init__()
        self.task, self.documents, self.scale, self.state = task, documents, scale, state
        first, filters = next(iter(task.aggregation())), task._filters
        self.headline = self._key(first, filters[0].name)
        if not self._here(first):
            raise SettingError(f"{task.task_name} of lmms-eval writes its answers to a file, to be scored elsewhere.")

    def extra_repr(self) -> str:
        """What tells scorers apart."""
        return f"{self.task.task_name}, scale={self.scale}, {self.state}"

    @staticmethod
    def _key(metric: str, filtered: str) -> str:
        return f"{metric},{filtered}".removesuffix(",none")

    def _here(self, metric: str) -> bool:
        """Whether a metric is computed from what each answer was given; others are handed the command line."""
        import inspect

        found = self.task.aggregation().get(metric)
        return found is not None and "args" not in inspect.signature(found).parameters

    def _scored(self, prediction: str, sample: Sample) -> Scored:
        doc = self.documents(sample.meta["split"])[int(sample.meta["row"])]
        said = SimpleNamespace(resps=[prediction], filtered_resps={})
        for one in self.task._filters:
            one.apply([said], [doc])
        return {
            self._key(metric, name): value
            for name, text in said.filtered_resps.items()
            for metric, value in self.task.process_results(doc, [text]).items()
            if self._here(metric)
        }

    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[Scored]:
        """What ``process_results`` says of each answer."""
        return [self._scored(prediction, sample) for prediction, sample in zip(predictions, samples, strict=True)]

    def score(self, records: Sequence[Scored]) -> dict[str, float]:
        """What ``aggregation`` makes of them, in points.

        Raises:
            SettingError: A score is no share of 1 and no scale is set, or the first metric is no number.
        """
        values: dict[str, list[Any]] = {}
        for record in records:
            for key, value in record.items():
                values.setdefault(key, []).append(value)
        totals = {key: self.task.aggregation()[key.split(",")[0]](every) for key, every in values.items()}
        found = {key: float(total) for key, total in totals.items() if isinstance(total, Real)}
        if self.headline not in found:
            raise SettingError(
                f"{self.task.task_name} of lmms-eval gives {totals.get(self.headline)!r:.80} for {self.headline}, its "
                "first metric, where a number is wanted. Put another one first in the task file's metric_list."
            )
        if self.scale is None and (above := {key: value for key, value in found.items() if value > 1}):
            raise SettingError(
                f"{self.task.task_name} of lmms-eval has scores that are no shares of 1: {above}. Set the task's scale "
                "(data.task.scale), by which they become points: 1 if they are points, 100 if 1 is 100 points."
            )
        return {key: value * (100 if self.scale is None else self.scale) for key, value in found.items()}

    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """Each answer's own share, where the first metric is the mean of such."""
        from lmms_eval.api.registry import get_aggregation

        plain = self.task.aggregation()[self.headline.split(",")[0]] is get_aggregation("mean")
        values = [record.get(self.headline) for record in self.records(predictions, samples)] if plain else []
        shares = [float(one) if isinstance(one, Real) and 0 <= one <= 1 else None for one in values]  # type: ignore[operator]
        return shares if plain else [None] * len(samples)
