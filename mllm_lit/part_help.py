"""The options of one part of a run, printed without the libraries that the other parts need."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.metadata import version
from inspect import isclass
from pathlib import Path
from pkgutil import resolve_name
from textwrap import indent
from typing import Any

import yaml

from mllm_lit.errors import UsageError
from mllm_lit.names import PLACES, find, names, near

PARTS = {
    "model": "mllm_lit.module.MLLMModule",
    "model.adapter": "mllm_lit.adapters.Adapter",
    "model.backbone": "mllm_lit.backbones.Backbone",
    "model.importance": "mllm_lit.importance.Rule",
    "model.objective": "mllm_lit.objectives.Objective",
    "data": "mllm_lit.data.MLLMDataModule",
    "data.sources": "mllm_lit.sources.Sources",
    "data.others": "mllm_lit.sources.Sources",
    "data.task": "mllm_lit.tasks.Task",
    "trainer": "mllm_lit.trainer.MLLMTrainer",
}
"""Option -> class that its value is of; classes of the same module can be named without it."""
HEAVY = ("model", "data", "trainer")
"""Parts that take seconds to import; their options lie in :data:`KEPT`, by ``python -m mllm_lit.part_help``."""
KEPT = Path(__file__).parent / "help"


def asked(words: Sequence[str]) -> tuple[str, str] | None:
    """The part whose help a command line asks for, and the name, class or file that it asks about, if any.

    >>> asked(["--config", "x", "--model.adapter.help", "lora"]), asked(["--data.help"]), asked(["--help"])
    (('model.adapter', 'lora'), ('data', ''), None)
    """
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        option, equals, value = word.partition("=")
        part = option.removeprefix("--").removesuffix(".help")
        if option == f"--{part}.help" and part in PARTS:
            return part, value if equals else "" if following.startswith("--") else following
    return None


def print_help(part: str, value: str) -> None:
    """Print the options of a part; what a file sets of them, or which files and classes there are.

    Args:
        part: A key of :data:`PARTS`.
        value: The name of a file, its path, or a class; empty for the part's base.

    Raises:
        UsageError: There is no such file or class.
    """
    known = f"\nnames: {', '.join(names(part))}\n" if part in PLACES and not value else ""
    if not value and (text := kept_options(part)) is not None:
        sys.stdout.write(text + known)
        return
    file = Path(find(part, value)) if value and part in PLACES else None
    kind: Any = resolve_name(PARTS[part])
    if file is not None and file.is_file():
        content = file.read_text(encoding="utf-8")
        sys.stdout.write(f"{file}:\n{indent(content, '    ')}\n")
        settings = yaml.safe_load(content)
        kind = (
            class_of(part, settings["class_path"]) if isinstance(settings, dict) and "class_path" in settings else kind
        )
    elif value:
        kind = class_of(part, value)
    sys.stdout.write(options_of(part, kind) + known)
    if not value:
        there = [name for name, one in classes(part).items() if one is not kind]
        sys.stdout.write(f"\nclasses: {', '.join(there)}\n" if there else "")


def options_of(part: str, kind: Any) -> str:
    """The options of a class, as text."""
    from mllm_lit.wording import PlainParser

    parser = PlainParser(usage=argparse.SUPPRESS, add_help=False)
    parser.add_class_arguments(kind, part)
    return parser.format_help().lstrip("\n")


def kept_options(part: str) -> str | None:
    """The options of a part that takes seconds to import, if they were written with the versions that are installed."""
    file = KEPT / f"{part}.txt"
    made_with, _, text = file.read_text(encoding="utf-8").partition("\n") if file.is_file() else ("", "", "")
    return text if made_with == versions() else None


def versions() -> str:
    """Of the libraries whose words are in the options."""
    return ", ".join(f"{name} {version(name)}" for name in ("lightning", "jsonargparse"))


def keep_options(folder: Path = KEPT) -> None:
    """Write the options of the parts that import torch and Lightning, 80 columns wide."""
    os.environ["COLUMNS"] = "80"
    for part in HEAVY:
        text = options_of(part, resolve_name(PARTS[part]))
        (folder / f"{part}.txt").write_text(f"{versions()}\n{text}", encoding="utf-8")


def classes(part: str) -> dict[str, Any]:
    """The classes that come with the package for a part, by name."""
    base: Any = resolve_name(PARTS[part])
    module = import_module(PARTS[part].rpartition(".")[0])
    # What a module gives only when it is asked for, as mllm_lit.data does, is named in SERVED; VisionCache needs torch.
    served = {name: getattr(module, name) for name in getattr(module, "SERVED", ())}
    found = {name: one for name, one in vars(module).items() if name in getattr(module, "__all__", ())} | served
    return {name: one for name, one in sorted(found.items()) if isclass(one) and issubclass(one, base)}


def class_of(part: str, value: str) -> Any:
    """A class by its path, or by its name where it is in the part's module.

    Raises:
        UsageError: There is none, or it is no value of the part.
    """
    module, _, base = PARTS[part].rpartition(".")
    own = "." not in value or value.startswith("mllm_lit.")
    name = value.rpartition(".")[2] if own else value
    try:
        # A class of this package is taken from where it needs the least, mllm_lit.data.Sources without Lightning.
        kind = resolve_name(f"{module}.{name}" if own and hasattr(import_module(module), name) else value)
    except (AttributeError, ImportError, ValueError):
        likely = near(value, [*(names(part) if part in PLACES else ()), *classes(part)])
        hint = f"; did you mean {likely}?" if likely else "."
        raise UsageError(f"--{part}.help {value}: there is no such name, file or class{hint}") from None
    if not (isclass(kind) and issubclass(kind, resolve_name(PARTS[part]))):
        raise UsageError(f"--{part}.help {value}: it is no {base}.")
    return kind


if __name__ == "__main__":
    keep_options()
