"""Which option of a multiple-choice question a text names."""

import re
from collections.abc import Sequence

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import MeanScore
from mllm_lit.metrics.exact import ExactMatch
from mllm_lit.metrics.relaxed import contained, words

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SENTENCE = re.compile(r"The answer is ([A-Z]).")
ALONE = re.compile(r"\W*([A-Za-z])\W*")
NAMED = re.compile(r"(?<![\w'’])(?:[B-HJ-Z]|[AI](?! (?!(?:is|and|or)\b)[a-z]))(?![\w'’])")
"""A letter that stands for an option; ``A`` and ``I`` ahead of most words in small letters are words themselves."""


def parse_choice(text: str, n_choices: int) -> int:
    """The index of the option that an answer names, or -1; never a guess.

    Accepted, as in LLaVA's ScienceQA evaluation: a letter alone; a letter, a period and a blank in front of anything;
    exactly one ``The answer is X.`` (its final period may be any character but a newline). Blanks around the text do
    not count. A letter beyond the choices is no answer.

    >>> parse_choice("B", 3), parse_choice("B. a magnet", 3), parse_choice("So... The answer is C.", 3)
    (1, 1, 2)
    >>> parse_choice("D", 3), parse_choice("b", 3), parse_choice("a magnet", 3)
    (-1, -1, -1)
    """
    text = text.strip()
    if len(text) == 1:
        letter = text
    elif text[1:3] == ". ":
        letter = text[0]
    else:
        found = SENTENCE.findall(text)
        letter = found[0] if len(found) == 1 else ""
    return LETTERS[:n_choices].index(letter) if letter and letter in LETTERS[:n_choices] else -1


def parse_choice_relaxed(text: str, choices: Sequence[str]) -> int:
    """The index of the one option that an answer names by letter or by text, or -1; never a guess.

    As VLMEvalKit infers it without a judge (arXiv 2407.11691): letters first, then texts, and only if there is one of
    them. In this order:

    1. what :func:`parse_choice` finds;
    2. a text that is one letter, small or capital, marks around it aside;
    3. the capital letters of options that stand as words outside of the options' texts (``A`` and ``I`` not ahead of a
       word in small letters other than is, and, or): if there is one, that one; if there are several, none;
    4. the one option whose text the answer contains as words (:func:`~mllm_lit.metrics.relaxed.contains`); an option
       inside a longer one that it contains, too, and options that are a letter do not count.

    >>> choices = ["a magnet", "iron", "cast iron"]
    >>> [parse_choice_relaxed(text, choices) for text in ("(b)", "Answer: C", "A magnet is.", "It is cast iron.")]
    [1, 2, 0, 2]
    >>> [parse_choice_relaxed(text, choices) for text in ("A or B", "iron or a magnet", "D", "")]
    [-1, -1, -1, -1]
    """
    strict = parse_choice(text, len(choices))
    if strict >= 0:
        return strict
    letters = LETTERS[: len(choices)]
    texts = ["" if ALONE.fullmatch(choice) else choice.strip().rstrip(".") for choice in choices]
    alone = ALONE.fullmatch(text)
    found = contained(text, texts)
    rest = text
    for i in found:
        rest = words(texts[i]).sub("text", rest)
    named = {alone[1].upper()} if alone else set(NAMED.findall(rest))
    if named & set(letters):
        return letters.index(named.pop()) if len(named) == 1 else -1
    return found[0] if len(found) == 1 else -1


class ChoiceAccuracy(MeanScore):
    """Share of the rows whose answer names the right option; the row's own answer is its letter, or begins with it."""

    headline = "accuracy"

    def row_score(self, prediction: str, sample: Sample) -> float:
        """1 for the right option, else 0."""
        return float(parse_choice(prediction, len(sample.choices)) == _right(sample))

    def relaxed_score(self, prediction: str, sample: Sample) -> float:
        """1 for the right option by letter or text, else 0."""
        return float(parse_choice_relaxed(prediction, sample.choices) == _right(sample))


def _right(sample: Sample) -> int:
    right = parse_choice(sample.answer, len(sample.choices))
    assert right >= 0, f"{sample.origin or sample.id}: the answer {sample.answer!r} names no option"
    return right


class ChosenAnswer(MeanScore):
    """Share of the rows whose answer, a choice, is among the references: BIG-bench's multiple choice grade."""

    headline = "accuracy"

    def row_score(self, prediction: str, sample: Sample) -> float:
        """1 for a right option, else 0."""
        return float(prediction in sample.references)


class ChosenText(ExactMatch):
    """Share of the rows whose answer is the right option's text, case aside; relaxed, its letter will do, too."""

    def __init__(self, breakdown: Sequence[str] = ()) -> None:
        super().__init__("lower", breakdown)

    def relaxed_score(self, prediction: str, sample: Sample) -> float:
        """1 for the right option by letter or text, else 0."""
        found = parse_choice_relaxed(prediction, sample.choices)
        return float(found >= 0 and sample.choices[found] == sample.references[0])
