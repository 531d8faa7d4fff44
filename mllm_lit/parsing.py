"""What the parser of the command line is helped with."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import _typehints
from jsonargparse._util import NestedArg

from mllm_lit.errors import SettingError

LISTS = ("callbacks", "logger", "plugins")
"""Settings whose file may hold a list."""


def check_files(words: Sequence[str]) -> None:
    """Read every configuration file on a command line, since the parser does not name all that it cannot use.

    Raises:
        SettingError: One is not text, not YAML, or holds no settings.
    """
    for name, value in pairs(words):
        path = Path(value)
        if not (name == "config" or path.suffix in (".yaml", ".yml")) or not path.is_file():
            continue
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise SettingError(f"--{name} {value} is no readable YAML: {' '.join(str(error).split())}") from error
        if not isinstance(content, dict) and not (isinstance(content, list) and name.endswith(LISTS)):
            found = "nothing" if content is None else f"a {type(content).__name__}"
            raise SettingError(f"--{name} {value} holds {found}, expected settings, as in `name: value`.")


def pairs(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Names of options and their values.

    >>> list(pairs(["fit", "--config", "a.yaml", "--x=1", "--flag", "--y", "2"]))
    [('config', 'a.yaml'), ('x', '1'), ('y', '2')]
    """
    for word, following in zip(words, [*words[1:], "--"], strict=True):
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and (equals or not following.startswith("--")):
            yield name, value if equals else following


def keep_null() -> None:
    """Let ``null`` on the command line be null at any depth.

    jsonargparse reads a word for a nested class and hands it to the parser of that class as text again, where what it
    had read as ``None`` arrives as the text "None".
    """
    adapt: Any = _typehints.adapt_class_type
    if getattr(adapt, "keeps_null", False):
        return

    def adapt_class_type(value: Any, *args: Any, **kwargs: Any) -> Any:
        nested = value.get("init_args") if hasattr(value, "get") else None
        if isinstance(nested, NestedArg) and nested.val is None:
            value["init_args"] = nested._replace(val="null")
        return adapt(value, *args, **kwargs)

    adapt_class_type.keeps_null = True  # type: ignore[attr-defined]
    _typehints.adapt_class_type = adapt_class_type
