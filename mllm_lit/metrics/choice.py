"""Which option of a multiple-choice question a text names."""

import re

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import MeanScore

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SENTENCE = re.compile(r"The answer is ([A-Z]).")


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


class ChoiceAccuracy(MeanScore):
    """Share of the rows whose answer names the right option; the row's own answer is the right letter."""

    headline = "accuracy"

    def row_score(self, prediction: str, sample: Sample) -> float:
        """1 for the right option, else 0."""
        return float(parse_choice(prediction, len(sample.choices)) == LETTERS.index(sample.answer))
