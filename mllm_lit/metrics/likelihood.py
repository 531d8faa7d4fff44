"""How likely a text is, where nothing is generated."""

import math
from collections.abc import Sequence

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import AnswerMetric


class TextLikelihood(AnswerMetric):
    """100 · exp(−NLL), the geometric mean of the probabilities of a text's tokens."""

    headline = "token_probability"

    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[None]:
        """Nothing: the NLL says it all."""
        return [None] * len(samples)

    def score(self, records: Sequence[None]) -> dict[str, float]:
        """See :meth:`of_nll`."""
        return {}

    def of_nll(self, nll: float) -> dict[str, float]:
        """In points."""
        return {self.headline: 100 * math.exp(-nll)}

    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """None: a row has its NLL."""
        return [None] * len(samples)
