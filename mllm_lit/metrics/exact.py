"""Accuracy by equality with the one reference, after each benchmark's own normalisation."""

from collections.abc import Callable, Sequence

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import MeanScore
from mllm_lit.metrics.relaxed import contained, contains


def gqa_match(prediction: str, answer: str) -> bool:
    """GQA's equality: blanks, a trailing period and case do not count.

    >>> gqa_match("Left.", "left")
    True
    """
    return _gqa(prediction) == _gqa(answer)


def ocrvqa_match(prediction: str, answer: str) -> bool:
    """OCR-VQA's equality: blanks around the text and case do not count.

    >>> ocrvqa_match(" Cookbooks ", "cookbooks"), ocrvqa_match("Cookbooks.", "cookbooks")
    (True, False)
    """
    return prediction.strip().lower() == answer.strip().lower()


def exact_match(prediction: str, answer: str) -> bool:
    """IconQA's fill-in-the-blank: equality of the strings, blanks around them aside."""
    return prediction.strip() == answer.strip()


def _gqa(text: str) -> str:
    return text.strip().rstrip(".").lower()


MATCHES: dict[str, Callable[[str, str], bool]] = {
    "exact": exact_match,
    "lower": ocrvqa_match,
    "gqa": gqa_match,
}


class ExactMatch(MeanScore):
    """Share of the rows whose answer equals the reference.

    Args:
        match: ``exact`` (IconQA fill-in-the-blank), ``lower`` (OCR-VQA, IconQA choose-text) or ``gqa``.
        breakdown: See :class:`MeanScore`.
    """

    headline = "accuracy"

    def __init__(self, match: str = "exact", breakdown: Sequence[str] = ()) -> None:
        super().__init__(breakdown)
        if match not in MATCHES:
            raise ValueError(f"match is {match!r}; there are: {', '.join(MATCHES)}")
        self.match = MATCHES[match]

    def row_score(self, prediction: str, sample: Sample) -> float:
        """1 if equal, else 0."""
        return float(self.match(prediction, sample.references[0]))

    def relaxed_score(self, prediction: str, sample: Sample) -> float:
        """1 if the answer contains the reference as words, and no other option where there are some; else 0."""
        reference = sample.references[0]
        if reference not in sample.choices:
            return float(contains(prediction, reference))
        found = contained(prediction, sample.choices)
        return float([sample.choices[i] for i in found] == [reference])
