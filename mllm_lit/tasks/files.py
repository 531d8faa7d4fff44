"""Reading the files of a release: its rows are declared types, and all faulty rows of a file are named at once."""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import msgspec

from mllm_lit.data.faults import DatasetError, Fault, read_text

T = TypeVar("T")

Text = Annotated[str, msgspec.Meta(pattern=r"\S")]
"""A text that is not blank."""
Key = Annotated[str, msgspec.Meta(pattern=r"^\S(.*\S)?\Z", max_length=256)] | Annotated[int, msgspec.Meta(ge=0)]
"""An id: a number, or a text on one line."""
Index = Annotated[int, msgspec.Meta(ge=0)]
"""A place in a list, or the number of a picture."""


class Row(msgspec.Struct, gc=False):
    """What a release says of one row; fields that are not declared are left out."""


def read_json(path: Path, kind: type[T], text: str | None = None) -> T:
    """A JSON file of a declared type.

    Args:
        path: The file.
        kind: What it holds, for msgspec.
        text: Its content, if that was read already.

    Raises:
        DatasetError: A syntax error, with its line and column, a key that an object has twice, or another type; the
            message has the path of the value, what was expected there and what was found.
    """
    text = read_text(path) if text is None else text
    content = parse(path, text)
    try:
        return convert(content, kind)
    except msgspec.ValidationError as error:
        raise DatasetError(f"{path}: {reason(error)}; it is not the file expected here") from error


def parse(path: Path, text: str) -> Any:
    """JSON without a declared type; slower than msgspec's own parser, but it sees repeated keys and says where it is.

    Raises:
        DatasetError: A syntax error, with its line and column, or a key that an object has twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except RecursionError as error:
        raise DatasetError(
            f"{path}: its lists and objects are nested too deeply; it is not the file expected"
        ) from error
    except ValueError as error:
        told = "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)
        raise DatasetError(f"{path}: {told}") from error


def _constant(name: str) -> NoReturn:
    raise ValueError(f"the value {name}, which JSON does not have")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in content if keys.count(key) > 1)
        raise ValueError(f"an object has the key {repeated!r} more than once; ids must be unique")
    return content


def reason(error: Exception) -> str:
    """A fault of types in the order place, expected, found.

    >>> reason(msgspec.ValidationError("Expected `int`, got `array` - at `$.rows[3].id`"))
    '$.rows[3].id: expected int, got array'
    """
    told, _, place = str(error).partition(" - at `")
    told = told.replace("`", "")
    blank = re.search(r"matching regex '\\\\S'", told)
    told = "expected text that is not blank" if blank else told[:1].lower() + told[1:]
    return f"{place.rstrip('`')}: {told}" if place else told


def read_list(path: Path, row: type[T], key: str | None = None) -> list[T]:
    """The rows of a JSON file that holds a list, or an object with a list.

    Args:
        path: The file.
        row: The declared type of a row.
        key: Name of the list in the object; ``None`` for a file that is a list.

    Raises:
        DatasetError: The file is another one, or rows are faulty; all of them are named.
    """
    text = read_text(path)
    whole: Any = list[row] if key is None else msgspec.defstruct("File", [(key, list[row])])  # type: ignore[valid-type]
    try:
        content = msgspec.json.decode(text, type=whole)
        # msgspec keeps the last of two equal keys; then there are fewer than in the file.
        if msgspec.json.encode(msgspec.json.decode(text)).count(b":") == text.count(":"):
            return content if key is None else getattr(content, key)
        content = parse(path, text)
    except (msgspec.DecodeError, RecursionError):
        content = parse(path, text)  # Once more, slowly, to say where.
    if key is not None:
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise DatasetError(f"{path} has no list {key!r} at its top level, so it is not the file expected here")
        content = content[key]
    if not isinstance(content, list):
        raise DatasetError(f"{path} is no list of rows, so it is not the file expected here")
    name = "{}" if key is None else f"{key}[{{}}]"
    return [entry for _, entry in checked(path, ((name.format(i), entry) for i, entry in enumerate(content)), row)]


def read_mapping(path: Path, row: type[T]) -> dict[str, T]:
    """The rows of a JSON file that holds an object of rows by id; see :func:`read_list`."""
    content = parse(path, read_text(path))
    if not isinstance(content, dict):
        raise DatasetError(f"{path} is no object of rows by id, so it is not the file expected here")
    try:
        return convert(content, dict[str, row])  # type: ignore[valid-type]
    except msgspec.ValidationError:
        return dict(checked(path, content.items(), row))


def read_json_lines(path: Path, row: type[T]) -> list[tuple[str, T]]:
    """Line number (from 1) and row of every line that is not blank; see :func:`read_list`."""
    # A JSON text may hold other ends of lines, such as U+2028, as they are.
    lines = [(str(i), line) for i, line in enumerate(read_text(path).split("\n"), start=1) if line.strip()]
    parsed: list[tuple[str, Any]] = []
    faults: list[Fault] = []
    for number, line in lines:
        try:
            parsed.append((number, parse(path, line)))
        except DatasetError as error:
            faults.append(Fault(str(path), number, re.sub(r"^line 1, ", "", str(error).removeprefix(f"{path}: "))))
    if faults:
        raise DatasetError.of(faults)
    return checked(path, parsed, row)


def checked(path: Path, entries: Iterable[tuple[str, Any]], row: type[T]) -> list[tuple[str, T]]:
    """Entries of a file as rows of a declared type.

    Raises:
        DatasetError: Some are not; each is named.
    """
    found: list[tuple[str, T]] = []
    faults: list[Fault] = []
    for name, entry in entries:
        try:
            found.append((name, convert(entry, row)))
        except msgspec.ValidationError as error:
            faults.append(Fault(str(path), name, reason(error)))
    if faults:
        raise DatasetError.of(faults)
    return found


def convert(content: Any, kind: Any) -> Any:
    """A value as one of a declared type.

    Raises:
        msgspec.ValidationError: It is of another.
    """
    try:
        return msgspec.convert(content, kind)
    except UnicodeEncodeError as error:
        raise msgspec.ValidationError("Expected text, got half of a surrogate pair") from error


def column(entry: Mapping[str, Any], name: str, kind: Any) -> Any:
    """A cell of a table, of a declared type.

    Raises:
        ValueError: It is of another type.
    """
    try:
        return convert(entry[name], kind)
    except msgspec.ValidationError as error:
        raise ValueError(f"column {name!r}: {reason(error)}") from error


def by_key(path: Path, rows: Iterable[T], key: str, name: str) -> dict[Any, T]:
    """Rows of a list under the value of one of their fields, which must differ.

    Raises:
        DatasetError: Two rows have the same value; all such rows are named.
    """
    found: dict[Any, T] = {}
    faults: list[Fault] = []
    for number, row in enumerate(rows):
        value = getattr(row, key)
        if value in found:
            faults.append(Fault(str(path), f"{name}[{number}]", f"{key} {value!r} appears a second time"))
        found[value] = row
    if faults:
        raise DatasetError.of(faults)
    return found


def collect(path: Path, entries: Iterable[tuple[object, Any]], read: Callable[[str, Any], Iterable[T]]) -> list[T]:
    """Turn every entry of a file into what ``read`` makes of it, and report all malformed entries together.

    Args:
        path: The file, for the messages.
        entries: Its rows: position or key, and content.
        read: From row and content to the results of that row; may raise the usual errors of bad data.

    Raises:
        DatasetError: At least one row is malformed.
    """
    results: list[T] = []
    faults: list[Fault] = []
    for row, entry in entries:
        try:
            results.extend(read(str(row), entry))
        except KeyError as error:
            fields = sorted(map(str, entry)) if isinstance(entry, Mapping) else type(entry).__name__
            faults.append(Fault(str(path), str(row), f"field {error} is missing; the row has {fields}"))
        except (ValueError, TypeError, IndexError, AttributeError) as error:
            faults.append(Fault(str(path), str(row), str(error)))
    if faults:
        raise DatasetError.of(faults)
    return results


def option(index: int, choices: list[str], key: str = "answer") -> int:
    """The index of the right choice.

    Raises:
        ValueError: It is beyond the choices.
    """
    if not 0 <= index < len(choices):
        raise ValueError(f"field {key!r} is {index}, but there are {len(choices)} choices (from 0)")
    return index
