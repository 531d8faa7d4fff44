"""A parser that takes names of ``configs/`` in files, too, and says in a line or two what it cannot use."""

import re
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from jsonargparse import ArgumentParser
from jsonargparse._actions import _ActionConfigLoad, previous_config
from jsonargparse._namespace import NSKeyError
from jsonargparse._typehints import ActionTypeHint

from mllm_lit.names import PLACES, find, near, unknown
from mllm_lit.parsing import forget_class, short_names

SHOWN = 12
"""Most options that are listed where none is like the one that was given."""
NO_OPTION = re.compile(r"(?:Option|accept option) '([^']*)'")
UNRECOGNIZED = re.compile(r"unrecognized arguments: (?:--)?([^\s=]*)")
NO_NAME = re.compile(
    r"(?:Expected a dot import path string: |Unexpected import path format: |Unable to load config \"?)([^\"]*)"
)
EXPECTED = re.compile(r"Expected a (.+?)(?:\. Got value: .*)?$", re.MULTILINE)
GIVEN = re.compile(r"(?:Got|Given) value: (.*)$", re.DOTALL)
KEY = re.compile(r"^Parser key \"([^\"]*)\"")
CLASS = re.compile(r"^Problem with given class_path '([^']*)'")


class PlainParser(ArgumentParser):
    """jsonargparse's parser; files may be given by name, and an error is a line or two, without the usage."""

    def _check_value_key(self, action: Any, value: Any, key: str, cfg: Any = None, *args: Any, **kwargs: Any) -> Any:
        """A value of a file: before it is checked, a name becomes the file that it stands for.

        Such a one replaces what an earlier file has; options that are written out are laid over it.
        """
        takes_file = isinstance(action, _ActionConfigLoad) or getattr(action, "_enable_path", False)
        if takes_file and isinstance(value, str) and (option := option_of(key)):
            value = find(option, value)
        if isinstance(value, str) and isinstance(action, ActionTypeHint):
            earlier = None if getattr(self, "_inner_parser", False) else previous_config.get()
            cfg = cfg and cfg.clone()
            for settings in filter(None, (earlier, cfg)):
                forget_class(settings, key)
        return super()._check_value_key(action, value, key, cfg, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what was received and what was expected or is near, and end with status 2.

        A parser of a class within the settings hands its options on with the error instead.
        """
        if isinstance(ex, NSKeyError):
            ex.options = [action.dest for action in self._actions]  # type: ignore[attr-defined]
        if not self.exit_on_error:
            super().error(message, ex)
        unrecognized = UNRECOGNIZED.match(message)
        if unrecognized and ex is None:
            ex = NSKeyError(f"Option '{unrecognized[1]}' is not accepted")
            ex.options = [action.dest for action in self._actions]  # type: ignore[attr-defined]
        sys.stderr.write(f"error: {message if ex is None else words(ex)}\n")
        self.exit(2)
        raise AssertionError  # exit() does not return


def option_of(key: str) -> str:
    """The option of :data:`PLACES` that a key of a parser is, which may be one of a class within the settings.

    >>> option_of("model.adapter"), option_of("sources"), option_of("root"), option_of("config")
    ('model.adapter', 'data.sources', '', '')
    """
    last = key.rpartition(".")[2]
    return next((option for option in PLACES if option.rpartition(".")[2] == last != "config"), "")


def words(error: BaseException) -> str:
    """An error of the parser, from the innermost of the errors that jsonargparse has put around one another."""
    chain = list(causes(error))
    keys = [found[1] for one in chain if isinstance(one, TypeError) and (found := KEY.match(str(one)))]
    place = ".".join(key for key, before in zip(keys, ["", *keys], strict=False) if key != before)
    classes = [found[1].rpartition(".")[2] for one in chain if (found := CLASS.match(str(one)))]
    last = chain[-1]
    text = str(last)
    if isinstance(last, NSKeyError) and (named := NO_OPTION.search(text)):
        return no_option(place, classes, text, named[1], last)
    outer = str(chain[-2]) if len(chain) > 1 else ""
    whole = outer if outer.startswith("Does not validate against any of the Union") else text
    if named := NO_NAME.search(text):
        if option := option_of(place):
            return f"{place} {named[1]}: {unknown(option, named[1])}"
        choices, kinds = values_of(EXPECTED.findall(whole))
        values = ", ".join([*choices, *(kind for kind in kinds if kind == "null")])
        others = f"; other values are {values}" if choices else ""
        hint = f"; did you mean {likely}?" if (likely := near(named[1], [*short_names(), *choices])) else "."
        return f"{place} {named[1]}: no such file or class{others}{hint}"
    if isinstance(last, AttributeError) and last.name and (likely := near(last.name, dir(last.obj))):
        return f"{place}: {text}; did you mean {likely}?"
    if expected := EXPECTED.findall(whole):
        given = value[1] if (value := GIVEN.search(whole)) else "something else"
        return not_a_value(place, given, expected)
    inside = " ".join(re.sub(r"^Parser key \"[^\"]*\":", "", text).split())
    return f"{place}: {inside}" if place else inside


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what has caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__


def no_option(place: str, classes: list[str], text: str, name: str, error: Any) -> str:
    """What is said of an option that there is not."""
    group = found[1] if (found := re.match(r"Group '([^']*)'", text)) else ""
    full = ".".join(part for part in (group, name) if part)
    options = [option for option in error.options if option != "print_config" and not option.endswith("help")]
    likely = near(full, options)
    if not likely and (several := [one for one in options if one.startswith(f"{full.rpartition('.')[0]}.")]):
        options = several
    where = f"{place} ({classes[-1]})" if classes else place
    said = f"{where} has no option {full!r}" if where else f"there is no option {full!r}"
    if likely:
        return f"{said}; did you mean {likely}?"
    return f"{said}; known are {', '.join(options[:SHOWN])}{', ...' if len(options) > SHOWN else '.'}"


def not_a_value(place: str, given: str, expected: list[str]) -> str:
    """What is said of a value that is none of what is expected, in jsonargparse's words for types."""
    choices, kinds = values_of(expected)
    likely = near(given, choices)
    said = ", ".join(dict.fromkeys([*choices, *kinds]))
    return f"{place} is {given!r}, expected {said}" + (f"; did you mean {likely}?" if likely else ".")


def values_of(expected: list[str]) -> tuple[list[str], list[str]]:
    """Values that jsonargparse expects, and types of others."""
    choices: list[str] = []
    kinds: list[str] = []
    for one in expected:
        if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", one):
            choices += [choice.strip("'") for choice in literal[1].split(", ")]
        else:
            named = re.fullmatch(r"<class '(?:.*\.)?(\w+)'>", one)
            kinds.append({"NoneType": "null"}.get(named[1], named[1]) if named else one)
    return choices, kinds


def duration(seconds: float) -> str:
    """Two units at most.

    >>> duration(59), duration(3700), duration(86400 * 2.5)
    ('59 s', '1 h 2 min', '60 h 0 min')
    """
    if round(seconds) < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
