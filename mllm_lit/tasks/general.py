"""What readers of no particular benchmark share: the user says how answers are scored."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

SCORES = ("exact", "lower", "gqa", "vqa", "m4c", "choice", "caption", "pope")


def scorer(score: str) -> "AnswerMetric":
    """The metric of a name in ``SCORES``.

    Raises:
        ValueError: There is no such name.
    """
    from mllm_lit import metrics

    if score in ("exact", "lower", "gqa"):
        return metrics.ExactMatch(score)
    others = {
        "vqa": metrics.VQAAccuracy,
        "m4c": metrics.M4CAccuracy,
        "choice": metrics.ChoiceAccuracy,
        "caption": metrics.CaptionScores,
        "pope": metrics.POPEScores,
    }
    if score not in others:
        raise ValueError(f"score is {score!r}; there are: {', '.join(SCORES)}")
    return others[score]()
