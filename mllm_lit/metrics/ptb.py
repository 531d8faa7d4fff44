"""The tokens of a caption, as caption scorers count them: a pure-Python equal of ``PTBTokenizer`` of pycocoevalcap.

That one is a Java program (Stanford CoreNLP 3.4.1 with ``-preserveLines -lowerCase``) followed by the removal of
punctuation. It is a lexer: at each place the rule wins that sees the most text, what it only looks ahead to included,
and of equals the first. The same is done here, for what occurs in captions; benchmarks/scoring.py compares the two.

Known differences, all outside of what captions hold: a caption that contains a line separator other than a newline
shifts the captions after it there, and is a blank here; scripts whose letters Java's tables do not know.
"""

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

from mllm_lit.metrics.ptb_rules import AT_DIGIT, AT_LETTER, AT_OTHER, BEFORE_NUMBER, Rule

REMOVED = frozenset(("''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"))
"""Dropped after tokenisation. Brackets (-lrb-, ...) stay: the official list has them in upper case only."""


def _compiled(rules: Sequence[Rule]) -> list[tuple[re.Pattern[str], Callable[[str], str]]]:
    return [(re.compile(pattern), make) for pattern, make in rules]


_LETTER, _DIGIT, _OTHER = _compiled(AT_LETTER), _compiled(AT_DIGIT), _compiled(AT_OTHER)
_BLANKS = re.compile(r"(?:\s|&nbsp;|[\u200b\u200e\u200f\ufeff\x00])+")

# Chunks between blanks that can be cut up without a look at what follows them, unless they hold a letter or an
# abbreviation with a period whose meaning depends on it. Nearly all text is of these, and most of them recur.
_ALONE = re.compile(r"[\"(]?[A-Za-z]+(?:['/-][A-Za-z]+)*[.,;:!?\")]*(?=[ \n])")
_DEPENDS = re.compile(rf"(?:^|[^A-Za-z])(?:[A-Za-z]\.|{BEFORE_NUMBER})")


def tokenize(caption: str, following: str = "") -> str:
    """The caption's tokens in lower case, without punctuation, joined by blanks.

    Args:
        caption: Its newlines count as blanks.
        following: The caption that is scored next. The Java program reads on across captions: in ``plan B.`` before
            a caption that starts with ``The``, but not before one with ``Men``, the ``b`` loses its period.

    >>> tokenize('A man\\'s dog (big) can\\'t see the "No. 5" U.S. flag, etc.')
    "a man 's dog -lrb- big -rrb- ca n't see the no. 5 u.s. flag etc."
    """
    text = caption.replace("\n", " ")
    end = len(text)
    text = f"{text}\n{following}\n"
    at = 0
    tokens: list[str] = []
    while at < end:
        if text[at] == " ":
            at += 1
            continue
        alone = _ALONE.match(text, at) if at == 0 or text[at - 1] == " " else None
        if alone is not None and ("." not in alone[0] or _DEPENDS.search(alone[0]) is None):
            tokens += _chunk(alone[0])
            at = alone.end()
            continue
        found, at = _longest(text, at)
        tokens += found
    return " ".join(tokens)


def tokenize_all(captions: Sequence[str]) -> list[str]:
    """Each caption's tokens, every caption followed by the next one; see :func:`tokenize`."""
    tokens: list[str] = []
    following = ""
    for caption in reversed(captions):
        tokens.append(tokenize(caption, following))
        following = caption if caption.strip() else f"{caption}\n{following}"
    return tokens[::-1]


@lru_cache(maxsize=1 << 16)
def _chunk(chunk: str) -> list[str]:
    at, tokens = 0, []
    while at < len(chunk):
        found, at = _longest(f"{chunk} ", at)
        tokens += found
    return tokens


def _longest(text: str, at: int) -> tuple[list[str], int]:
    """The token at a place, if it counts, and where the next one starts; what no rule knows gives nothing."""
    blanks = _BLANKS.match(text, at)
    best, token, stop = (blanks.end() - at, "", blanks.end()) if blanks else (0, "", at + 1)
    first = text[at]
    for pattern, make in _LETTER if first.isalpha() else _DIGIT if first.isdecimal() else _OTHER:
        found = pattern.match(text, at)
        if found is not None and found.end() - at > best:
            best, token, stop = found.end() - at, make(found[1]), found.end(1)
    token = token.lower()
    return [token] if token and token not in REMOVED else [], stop
