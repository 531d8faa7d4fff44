"""VQA accuracy: agreement with several human annotators (Antol et al., 2015; the official evaluation of VQAv2)."""

import re
from collections.abc import Sequence
from functools import lru_cache

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import MeanScore
from mllm_lit.metrics.relaxed import best_count

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
ARTICLES = frozenset(("a", "an", "the"))
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
NUMBERS = {word: str(value) for value, word in enumerate(_NUMBER_WORDS)} | {"none": "0"}

# A contraction is restored when exactly one of its apostrophes is missing.
CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
    someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've
    there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's
    what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've
    wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
RESTORED = {
    word[:at] + word[at + 1 :]: word for word in CONTRACTIONS.split() for at, char in enumerate(word) if char == "'"
} | {"somebody'd": "somebodyd"}  # The official table has this one the wrong way round.

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# The official pattern means to spare the point of a decimal, but its look-behind is misspelt and never excludes
# anything, so what it removes is every point that no digit follows; and its flag argument is taken as a count of 32.
_PERIOD = re.compile(r"\.(?!\d)")
_PERIODS_STRIPPED = 32
_HAS_PUNCTUATION = re.compile(f"[{re.escape(PUNCTUATION)}.]")


def strip_punctuation(text: str) -> str:
    """Drop a mark that has a blank beside it somewhere (every mark if there is a 1,000), else put a blank there."""
    if not _HAS_PUNCTUATION.search(text):
        return text
    out, drop_all = text, _DIGIT_COMMA_DIGIT.search(text) is not None
    for mark in PUNCTUATION:
        if mark in text:
            drop = drop_all or f"{mark} " in text or f" {mark}" in text
            out = out.replace(mark, "" if drop else " ")
    return _PERIOD.sub("", out, count=_PERIODS_STRIPPED)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, no articles, contractions restored."""
    words = (NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


@lru_cache(maxsize=1 << 16)
def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def normalize_vqa(text: str) -> str:
    """An answer as the official VQA evaluation compares it.

    >>> normalize_vqa("The two dogs."), normalize_vqa("1,000"), normalize_vqa("10:30"), normalize_vqa("dont")
    ('2 dogs', '1000', '10:30', "don't")
    """
    return plain_words(strip_punctuation(_one_line(text)))


def leave_one_out(matches: int, annotators: int) -> float:
    """The mean over the annotators of min(n / 3, 1), where n of the *other* annotators gave the answer.

    >>> [round(leave_one_out(k, 10), 1) for k in range(6)]
    [0.0, 0.3, 0.6, 0.9, 1.0, 1.0]
    """
    givers, others = min(max(matches - 1, 0) / 3, 1.0), min(matches / 3, 1.0)
    return (matches * givers + (annotators - matches) * others) / annotators


def vqa_accuracy(prediction: str, answers: Sequence[str]) -> float:
    """The score in [0, 1] of one answer, as the official VQA evaluation has it.

    Newlines and tabs become blanks. Punctuation, number words, articles and contractions are normalised, on both
    sides, only if the annotators do not all give the same answer.

    Args:
        prediction: The generated answer.
        answers: The annotators' answers, ten in VQAv2, OK-VQA and VizWiz.

    Raises:
        ValueError: There is no annotator.

    >>> vqa_accuracy("yes.", ["yes"] * 10), vqa_accuracy("yes.", ["yes"] * 9 + ["no"])
    (0.0, 1.0)
    """
    if not answers:
        raise ValueError("an answer cannot be scored against no annotators: the list of answers is empty")
    given = [_one_line(answer) for answer in answers]
    said = _one_line(prediction)
    if given.count(given[0]) != len(given):
        given = [normalize_vqa(answer) for answer in given]
        said = normalize_vqa(said)
    return leave_one_out(given.count(said), len(given))


class VQAAccuracy(MeanScore):
    """Mean VQA accuracy (VQAv2, OK-VQA, VizWiz); the references are the annotators' answers."""

    headline = "vqa_accuracy"

    def row_score(self, prediction: str, sample: Sample) -> float:
        """The official score of one answer."""
        return vqa_accuracy(prediction, sample.references)

    def relaxed_score(self, prediction: str, sample: Sample) -> float:
        """The best score of the annotators' answers that this one contains as words, always normalised."""
        given = [normalize_vqa(answer) for answer in sample.references]
        return leave_one_out(best_count(normalize_vqa(prediction), given), len(given))
