"""What the parser of the command line is helped with."""

from typing import Any

from jsonargparse import _typehints
from jsonargparse._util import NestedArg


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
