"""Progress: bars in a terminal, lines in a file."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm

SECONDS = 30
"""Between two lines of a bar in a file."""


def progress_bar(items: Iterable[Any] | None = None, **options: Any) -> Any:
    """tqdm's bar; where standard error is a file, lines in its place, without what moves a cursor.

    Args:
        items: What is gone through; ``None`` if the caller counts.
        options: tqdm's.
    """
    if sys.stderr.isatty() or "ipykernel" in sys.modules:
        return tqdm(items, dynamic_ncols=True, **options)
    form = "{desc}: {n_fmt}/{total_fmt}{unit}{postfix}, {elapsed}"
    plain = {"bar_format": form, "mininterval": SECONDS, "miniters": 1, "position": 0, "ncols": 1000, "file": Lines()}
    return tqdm(items, **(options | plain))


class Lines:
    """Standard error, on which what tqdm writes over itself stands below each other."""

    def __init__(self) -> None:
        self.last = ""

    def write(self, text: str) -> None:
        """Write a line, unless there is nothing new in it."""
        text = text.replace("\x1b[A", "").strip()
        if text and text != self.last:
            sys.stderr.write(f"{text}\n")
            self.last = text

    def flush(self) -> None:
        """See the class."""
        sys.stderr.flush()
