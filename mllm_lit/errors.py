"""Errors of input, settings and disk, and the one place that answers them in words."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number", int, float, int | None, float | None)

TRACEBACK = "MLLM_LIT_TRACEBACK"
"""Environment variable; 1 shows where in the code an error was raised."""
HIGHEST_SEED = 2**32 - 1
OUT_OF_MEMORY = (
    "The GPU's memory is full. Lower data.batch_size (and raise trainer.accumulate_grad_batches by as much), "
    "data.eval_tokens or model.backbone.max_length, recompute activations (model.backbone.gradient_checkpointing: "
    "llm), or load the backbone in bfloat16."
)
FULL = ("No space left", "I/O error", "I/O: ", "failed writing file", "iostream error", "unexpected pos")
"""Words of torch and safetensors where a disk takes no more."""


class UserError(Exception):
    """What a user gave cannot be used; the message says what was found, what is expected and what to change.

    Attributes:
        status: With which a process ends.
    """

    status = 1


class SettingError(UserError, ValueError):
    """A setting has a value that cannot be used."""


class UsageError(SettingError):
    """A word on the command line is not known: an option, a name or a command. Status 2, as the parser's."""

    status = 2


class BackboneError(UserError):
    """A backbone could not be loaded; the message names the path tried and the remedy."""


class AdapterError(UserError, ValueError):
    """An adapter cannot do what was asked of it; the message says why and what to change."""


class DiskError(UserError, OSError):
    """A file cannot be written; the message says how much it takes, how much is free, and what is safe."""


@contextmanager
def writing(path: Path, needed: int | None = None, safe: str = "") -> Iterator[None]:
    """Name a file or folder that the disk does not take.

    Args:
        path: Where something is written.
        needed: Its size in bytes, if that is known.
        safe: What is not lost, as a sentence.

    Raises:
        DiskError: It cannot be written.
    """
    try:
        yield
    except Exception as error:
        # safetensors and torch raise errors of their own where a disk is full.
        words = str(getattr(error, "strerror", None) or error)
        full = any(told in words for told in FULL)
        if not full and not isinstance(error, OSError):
            raise
        size = "" if needed is None else f" It takes about {needed:,} bytes."
        raise DiskError(
            f"{path} could not be written: {words}.{size} {free(path)} bytes are free. {safe}".strip()
        ) from error


def write_whole(path: Path, text: str) -> None:
    """Put a file in place, so that who reads it meanwhile, or after a kill, finds the old one or all of the new one."""
    made = path.with_name(f"{path.name}.tmp")
    made.write_text(text, encoding="utf-8")
    os.replace(made, path)


def free(path: Path) -> str:
    """Bytes that are free where a file is to be written, for a message."""
    there = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    return f"{shutil.disk_usage(there).free:,}"


@contextmanager
def plain_errors() -> Iterator[None]:
    """End the process with the message alone where the user, not the code, is at fault.

    Status 1, or that of the :class:`UserError`.
    ``MLLM_LIT_TRACEBACK=1`` shows the traceback, too; other errors always keep theirs.
    """
    try:
        yield
    except KeyboardInterrupt:
        if os.environ.get(TRACEBACK) == "1":
            raise
        sys.stderr.write("Interrupted.\n")
        raise SystemExit(130) from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":
            error = SettingError(f"{OUT_OF_MEMORY} ({str(error).splitlines()[0]})")
        if not is_users(error) or os.environ.get(TRACEBACK) == "1":
            raise
        sys.stderr.write(f"{type(error).__name__}: {own_words(error)}\n")
        raise SystemExit(error.status if isinstance(error, UserError) else 1) from None


def own_words(error: Exception) -> str:
    """The message; of an error that a loader's process has handed on, without the traceback put around it."""
    text = str(error)
    if not text.startswith("Caught "):
        return text
    return re.split(rf"\n(?:[\w.]+\.)?{type(error).__name__}: ", text)[-1].rstrip()


def is_users(error: Exception) -> bool:
    """Whether an error is one of input, settings or disk."""
    import yaml

    # Rules, tasks and metrics work without Lightning; where it was not imported, it has raised nothing.
    lightning = sys.modules.get("lightning.fabric.utilities.exceptions")
    theirs = lightning is not None and isinstance(error, lightning.MisconfigurationException)
    return theirs or isinstance(error, (UserError, OSError, yaml.YAMLError))


@contextmanager
def from_settings() -> Iterator[None]:
    """Raise a ``ValueError`` of a class that is made from settings as a :class:`SettingError`.

    So are a package that is missing and what MLflow refuses, whose messages say what to do.
    """
    try:
        yield
    except ValueError as error:
        # jsonargparse puts a ValueError with words of its own around whatever a class has raised.
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, UserError):
            cause = cause.__cause__
        refused = type(cause).__name__ == "MlflowException"
        if not refused and not isinstance(cause, ValueError | UserError | ModuleNotFoundError):
            raise
        raise (cause if isinstance(cause, UserError) else SettingError(str(cause))) from error


def in_range(
    name: str,
    value: Number,
    low: float | None = None,
    high: float | None = None,
    *,
    above: float | None = None,
    below: float | None = None,
) -> Number:
    """The value, if it is a finite number within its bounds, or ``None``.

    Args:
        name: Of the setting, for the message.
        value: What was given.
        low: The least that is allowed.
        high: The most.
        above: What it has to exceed.
        below: What it has to stay under.

    Raises:
        SettingError: It is not.

    >>> in_range("rank", 8, 1)
    8
    >>> in_range("warmup", 2.0, 0, 1)
    Traceback (most recent call last):
        ...
    mllm_lit.errors.SettingError: warmup is 2.0; expected a number from 0 to 1.
    """
    if value is None:
        return value
    if not isinstance(value, Real) or isinstance(value, bool):
        raise SettingError(f"{name} is {value!r}; expected a number.")
    # Infinity and NaN have no difference from themselves; `math.isfinite` fails on whole numbers of 400 digits.
    inside = value - value == 0 and not (
        (low is not None and value < low)
        or (high is not None and value > high)
        or (above is not None and value <= above)
        or (below is not None and value >= below)
    )
    if inside:
        return value
    if low is not None and high is not None:
        raise SettingError(f"{name} is {value}; expected a number from {low:g} to {high:g}.")
    words = (("at least", low), ("at most", high), ("above", above), ("below", below))
    bounds = " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)
    raise SettingError(f"{name} is {value}; expected a finite number{' ' + bounds if bounds else ''}.")


def check_seed(name: str, value: int | None) -> int | None:
    """The seed, if numpy and torch can both take it.

    Raises:
        SettingError: They cannot.
    """
    if value is not None and not 0 <= value <= HIGHEST_SEED:
        raise SettingError(f"{name} is {value}; expected a whole number from 0 to {HIGHEST_SEED}.")
    return value
