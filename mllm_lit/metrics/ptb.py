"""The tokens of a caption, as caption scorers count them."""

import re

REMOVED = frozenset(
    ("''", "'", "``", "`", "-lrb-", "-rrb-", "-lcb-", "-rcb-", ".", "?", "!", ",", ":", "-", "--", "...", ";")
)
_TOKEN = re.compile(r"[a-z]+(?:-[a-z]+)*(?='s\b)|'s\b|[a-z0-9]+(?:-[a-z0-9]+)*|[^\sa-z0-9]")


def tokenize(caption: str) -> str:
    """Lower-cased tokens without punctuation, joined by blanks."""
    return " ".join(token for token in _TOKEN.findall(caption.lower()) if token not in REMOVED)
