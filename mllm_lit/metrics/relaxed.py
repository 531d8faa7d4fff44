"""Whether an answer holds the right one as words, whatever it says beside: to tell lost facts from lost formats."""

import re
from collections.abc import Iterable, Sequence


def words(phrase: str) -> re.Pattern[str]:
    """Finds ``phrase`` as whole words, in either case; a number is not found in a longer one."""
    return re.compile(rf"(?<!\w)(?<!\d[.,]){re.escape(phrase)}(?!\w|[.,]\d)", re.IGNORECASE)


def contains(text: str, phrase: str) -> bool:
    """Whether ``phrase`` stands in ``text`` as whole words, in either case.

    It is the reading of LVLM-eHub (Xu et al., arXiv 2306.09265), whose word boundary finds ``1`` in ``1.5``, too.

    >>> contains("The cat is red.", "Red"), contains("reddish", "red"), contains("It costs 1.5", "1"), contains("a", "")
    (True, False, False, False)
    """
    phrase = phrase.strip()
    return bool(phrase) and phrase.lower() in text.lower() and words(phrase).search(text) is not None


def contained(text: str, phrases: Sequence[str]) -> list[int]:
    """Which of some phrases a text contains; one inside a longer one that it contains, too, does not count.

    >>> contained("it is a hot dog", ["dog", "hot dog", "cat"])
    [1]
    """
    found = [i for i, phrase in enumerate(phrases) if contains(text, phrase)]
    return [i for i in found if not any(i != j and contains(phrases[j], phrases[i]) for j in found)]


def best_count(said: str, given: Iterable[str]) -> int:
    """How many annotators gave that answer, of those which ``said`` contains, that most of them gave.

    >>> best_count("red or maybe blue", ["red", "red", "blue", "green"])
    2
    """
    answers = list(given)
    return max((answers.count(answer) for answer in set(answers) if contains(said, answer)), default=0)
