"""What readers of no particular benchmark share: the user says how answers are scored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
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


def check_scorable(score: str, references: Sequence[str], choices: Sequence[str]) -> None:
    """Refuse a row that the scorer is not defined for, when it is read and not after it was generated for.

    Raises:
        ValueError: The message names what the scorer wants.
    """
    answer = references[0]
    if score in ("exact", "lower", "gqa") and len(set(references)) > 1:
        raise ValueError(f"score {score!r} compares with one answer, the row has {len(references)}; see vqa or caption")
    if score == "choice" and (len(answer) != 1 or answer not in LETTERS[: len(choices)]):
        raise ValueError(f"score 'choice' wants the letter of one of {len(choices)} choices, the answer is {answer!r}")
    if score == "pope" and answer not in ("yes", "no"):
        raise ValueError(f"score 'pope' wants the answer yes or no, found {answer!r}")
    if score == "m4c" and len(references) != 10:
        raise ValueError(f"score 'm4c' is defined for ten answers, the row has {len(references)}")
