"""A merge's arguments, checked before anything is loaded."""

from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser

from mllm_lit.errors import in_range
from mllm_lit.merging import MERGES, MergeError, sweep
from mllm_lit.merging.wise_ft import ALPHAS


def check_options(method: str, text: str) -> dict[str, Any]:
    """A merge's arguments, before anything is loaded.

    Args:
        method: A key of ``MERGES``, or ``adapter``, which takes none.
        text: The arguments, as YAML.

    Raises:
        MergeError: There is no such merge, the arguments are no YAML, or not what the merge takes.
        SettingError: A value is out of range.
    """
    if method != "adapter" and method not in MERGES:
        raise MergeError(f"There is no merge {method!r}; there are: {', '.join(MERGES)}.")
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise MergeError(f"options {text.strip()!r} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(options, dict):
        raise MergeError(f"options is {text.strip()!r}, expected a mapping, as in '{{keep: 0.1}}'.")
    swept = is_sweep(method, options)
    parser = ArgumentParser(exit_on_error=False)
    if swept:
        parser.add_function_arguments(sweep, skip={"reference", "tuned"})
    elif method != "adapter":
        parser.add_class_arguments(MERGES[method])
    known = [action.dest for action in parser._actions if action.dest != "help"]
    if unknown := sorted(set(options) - set(known), key=str):
        raise MergeError(f"options {text.strip()!r}: {method} has no {unknown}; it takes {', '.join(known) or 'none'}.")
    try:
        parser.parse_object(options)
    except ArgumentError as error:
        raise MergeError(f"options {text.strip()!r}: {error}") from error
    for alpha in options.get("alphas", ()):
        in_range("alphas", alpha, 0, 1)
    if method != "adapter" and not swept:
        MERGES[method](**options)
    return options


def is_sweep(method: str, options: Mapping[str, Any]) -> bool:
    """Whether a merge is scored at several points: WiSE-FT without an alpha is."""
    return method == "wise_ft" and "alpha" not in options


def label_of(alpha: float) -> str:
    """A point of a sweep.

    >>> label_of(0.5)
    'alpha 0.50'
    """
    return f"alpha {alpha:.2f}"


def labels_of(method: str, options: Mapping[str, Any]) -> list[str]:
    """What the points are called that a merge is scored at.

    >>> labels_of("ties", {}), labels_of("wise_ft", {"alphas": [0.25, 0.5]})
    (['ties'], ['alpha 0.25', 'alpha 0.50'])
    """
    return [label_of(alpha) for alpha in options.get("alphas", ALPHAS)] if is_sweep(method, options) else [method]
