"""TextVQA accuracy, as the m4c evaluation of MMF and LLaVA has it."""

from collections.abc import Sequence
from functools import lru_cache

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import MeanScore
from mllm_lit.metrics.relaxed import best_count
from mllm_lit.metrics.vqa import leave_one_out, plain_words, strip_punctuation

ANNOTATORS = 10


@lru_cache(maxsize=1 << 16)
def normalize_m4c(text: str) -> str:
    """An answer as the m4c evaluation compares it: as VQA's, but always, and with ``,`` ``?`` dropped and ``'s`` split.

    >>> normalize_m4c("The cat's, 1,000?")
    "cat 's 1000"
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(strip_punctuation(text.strip().replace("\n", " ").replace("\t", " ").strip()))


def m4c_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The score in [0, 1] of one answer.

    Raises:
        ValueError: There are not exactly ten annotators.

    >>> m4c_accuracy("Coca Cola", ["coca cola"] * 3 + ["coke"] * 7)
    0.9
    """
    if len(answers) != ANNOTATORS:
        raise ValueError(f"{len(answers)} annotators' answers; TextVQA's metric is defined for {ANNOTATORS}")
    given = [normalize_m4c(answer) for answer in answers]
    return leave_one_out(given.count(normalize_m4c(prediction)), ANNOTATORS)


class M4CAccuracy(MeanScore):
    """Mean m4c accuracy (TextVQA); the references are the ten annotators' answers."""

    headline = "vqa_accuracy"

    def row_score(self, prediction: str, sample: Sample) -> float:
        """The score of one answer."""
        return m4c_accuracy(prediction, sample.references)

    def relaxed_score(self, prediction: str, sample: Sample) -> float:
        """The best score of the annotators' answers that this one contains as words."""
        given = [normalize_m4c(answer) for answer in sample.references]
        return leave_one_out(best_count(normalize_m4c(prediction), given), ANNOTATORS)
