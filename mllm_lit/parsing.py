"""What the parser of the command line is helped with."""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from inspect import unwrap
from pathlib import Path
from typing import Any, Union, get_args

import yaml
from jsonargparse import _common, _typehints, set_parsing_settings
from jsonargparse._util import NestedArg

from mllm_lit.errors import SettingError, UserError

LISTS = ("callbacks", "logger", "plugins")
"""Settings whose file may hold a list."""


def check_files(words: Sequence[str]) -> None:
    """Read every configuration file on a command line, since the parser does not name all that it cannot use.

    Raises:
        SettingError: One is not text, not YAML, or holds no settings.
    """
    for name, value in pairs(words):
        if not (name == "config" or value.endswith((".yaml", ".yml"))) or not os.path.isfile(value):
            continue
        try:
            content = yaml.safe_load(Path(value).read_text(encoding="utf-8"))
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


def auto_beside_a_class() -> None:
    """Let ``--model.vision_cache.gigabytes 1`` be an argument of the class where ``auto`` stood before.

    jsonargparse takes a word that stood there for the class's name.
    """
    if hasattr(_typehints, "takes_auto"):
        return
    plain: Any = _typehints.subclass_spec_as_namespace

    def subclass_spec_as_namespace(value: Any, before: Any = None) -> Any:
        return plain(value, None if before == "auto" else before)

    _typehints.subclass_spec_as_namespace = subclass_spec_as_namespace
    _typehints.takes_auto = True  # type: ignore[attr-defined]


def whole_values_replace() -> None:
    """Let a file, name or class on the command line replace what a setting was, with all its options.

    jsonargparse lays it over what stood there: options that the new one leaves out would go on, those of another class,
    too, where both have one of that name.
    """
    action: Any = _typehints.ActionTypeHint
    if hasattr(action, "replaces_whole"):
        return
    plain: Any = action.__call__

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) == 4 and isinstance(args[2], str):
            forget_class(args[1], self.dest, args[3].removeprefix(f"--{self.dest}").split(".")[1:])
        return plain(self, *args, **kwargs)

    action.__call__, action.replaces_whole = call, True


def forget_class(settings: Any, name: str, inside: Sequence[str] = ()) -> None:
    """Take a class and its options out of settings, or one that is an option of it, of that one's, and so on."""
    is_class: Any = _typehints.is_subclass_spec
    for part in (part for part in inside if part != "init_args"):
        spec = settings.get(name)
        if not is_class(spec) or not spec.get("init_args"):
            return
        settings, name = spec["init_args"], part
    if is_class(settings.get(name)):
        settings.pop(name)


def classes_by_name(base: type, module: Any) -> None:
    """Let a class be given by the ``name`` that it has: ``--data.task conversations`` is ``Conversations``.

    Args:
        base: What it is a subclass of.
        module: Where such classes are.
    """
    known: dict[type, dict[str, str]] = getattr(_typehints, "names_of_classes", {})
    every = (one for one in vars(module).values() if isinstance(one, type) and issubclass(one, base))
    names = {getattr(one, "name", None): f"{module.__name__}.{one.__name__}" for one in every}
    known[base] = {name: path for name, path in names.items() if isinstance(name, str)}
    if hasattr(_typehints, "names_of_classes"):
        return
    plain: Any = _typehints.resolve_class_path_by_name

    def resolve_class_path_by_name(cls: Any, name: str) -> Any:
        return known.get(cls, {}).get(name) or plain(cls, name)

    _typehints.resolve_class_path_by_name = resolve_class_path_by_name
    _typehints.names_of_classes = known  # type: ignore[attr-defined]


def short_names() -> list[str]:
    """All names of :func:`classes_by_name`."""
    return [name for names in getattr(_typehints, "names_of_classes", {}).values() for name in names]


def whole_numbers_first() -> None:
    """Let ``--trainer.limit_test_batches 1`` be one batch, and not 1.0, which is all of them.

    ``Optional[Union[int, float]]`` is the same object as ``Optional[Union[float, int]]``: whichever some library has
    asked for first, and the parser takes the first type that fits.
    """
    from lightning import Trainer

    annotations = unwrap(Trainer.__init__).__annotations__
    for name, kind in annotations.items():
        kinds = get_args(kind)
        if int in kinds and float in kinds:
            annotations[name] = Union[(int, float, *(one for one in kinds if one not in (int, float)))]


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level of dotted names, ``class_path`` and ``init_args`` left out of the names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = prefix if key in ("init_args", "class_path") else f"{prefix}.{key}".strip(".")
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


OWN = "mllm_lit"
REMOTE = "remote_code"


class TrustError(UserError):
    """A folder's configuration would run code that the user has not named."""


@contextmanager
def only_trusted(file: Path, settings: Any, trust: Sequence[str] = ()) -> Iterator[None]:
    """Within this context, settings can name classes of this package and of trusted modules only.

    Args:
        file: Where the settings come from.
        settings: Checked ahead, for a message that says what to do.
        trust: Further modules.

    Raises:
        TrustError: The settings name something else.
    """
    for name, value in named(settings):
        if name == "class_path" and not str(value).startswith(tuple(f"{module}." for module in (OWN, *trust))):
            raise TrustError(
                f"{file} names the class {value!r}, which is not of {OWN}: making it runs code. If you know that code, "
                f"add --trust {str(value).partition('.')[0]}."
            )
    kept = dict(_common.parsing_settings)
    # Whatever is spelled in some other way is denied by the parser.
    set_parsing_settings(import_path_denylist=["*"], import_path_allowlist=[OWN, *trust])
    try:
        yield
    finally:
        _common.parsing_settings.clear()
        _common.parsing_settings.update(kept)


def refuse_remote(file: Path, backbone: Any, trust: Sequence[str] = ()) -> None:
    """Refuse a backbone that would run the code it brings along.

    Raises:
        TrustError: It would, and ``trust`` does not hold ``remote_code``.
    """
    if getattr(backbone, "trust_remote_code", False) and REMOTE not in trust:
        raise TrustError(
            f"{file} asks for the code that comes with its backbone (trust_remote_code). If you have read that code, "
            f"add --trust {REMOTE}."
        )


def named(tree: Any) -> Iterator[tuple[str, Any]]:
    """Every name of nested settings, with its value."""
    for name, value in tree.items() if isinstance(tree, dict) else ():
        yield name, value
        yield from named(value)
    for item in tree if isinstance(tree, list) else ():
        yield from named(item)
