"""Reading the files of a release: faults are named by file and row, and all those of a file are reported at once."""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from mllm_lit.tasks.base import DatasetError, Fault

T = TypeVar("T")


def read_text(path: Path) -> str:
    """A file's UTF-8 text.

    Raises:
        DatasetError: It cannot be opened, or is not UTF-8 (the message gives the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}, byte {error.start} is not UTF-8 text (0x{data[error.start]:02x}); "
            "convert it, for instance with: iconv -f latin1 -t utf-8"
        ) from error


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        DatasetError: A syntax error, with its line and column, or a key that an object has twice.
    """
    try:
        return json.loads(read_text(path), object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise DatasetError(f"{path}: line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}") from error
    except RepeatedKey as error:
        raise DatasetError(f"{path}: {error}") from error


class RepeatedKey(ValueError):
    """An object of a JSON file has a key twice, of which the parser would drop one."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in content if keys.count(key) > 1)
        raise RepeatedKey(f"an object has the key {repeated!r} more than once; ids must be unique")
    return content


def by_key(path: Path, rows: list[dict[str, Any]], key: str, name: str) -> dict[Any, dict[str, Any]]:
    """Rows of a list under the value of one of their fields, which must differ.

    Raises:
        DatasetError: The field is missing, or two rows have the same value; all such rows are named.
    """
    found: dict[Any, dict[str, Any]] = {}
    faults: list[Fault] = []
    for number, row in enumerate(rows):
        if key not in row:
            faults.append(Fault(str(path), f"{name}[{number}]", f"field {key!r} is missing"))
        elif row[key] in found:
            faults.append(Fault(str(path), f"{name}[{number}]", f"{key} {row[key]!r} appears a second time"))
        else:
            found[row[key]] = row
    if faults:
        raise DatasetError.of(faults)
    return found


def read_list(path: Path) -> list[Any]:
    """A JSON file that holds one list."""
    content = read_json(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path} is no list of rows, so it is not the file expected here")
    return content


def read_table(path: Path, *keys: str) -> list[list[dict[str, Any]]]:
    """The named lists of objects in a JSON file that holds one object.

    Raises:
        DatasetError: The file has no such list, or an entry is no object.
    """
    content = read_json(path)
    tables = []
    for key in keys:
        table = content.get(key) if isinstance(content, dict) else None
        if not isinstance(table, list):
            raise DatasetError(f"{path} has no list {key!r} at its top level, so it is not the file expected here")
        faults = [
            Fault(str(path), f"{key}[{i}]", "not an object") for i, row in enumerate(table) if not isinstance(row, dict)
        ]
        if faults:
            raise DatasetError.of(faults)
        tables.append(table)
    return tables


def read_json_lines(path: Path) -> list[tuple[int, Any]]:
    """Line number (from 1) and value of every line that is not blank.

    Raises:
        DatasetError: Lines are not JSON; all of them are named.
    """
    values: list[tuple[int, Any]] = []
    faults: list[Fault] = []
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            values.append((number, json.loads(line)))
        except json.JSONDecodeError as error:
            faults.append(Fault(str(path), str(number), f"not valid JSON: {error.msg} at column {error.colno}"))
    if faults:
        raise DatasetError.of(faults)
    return values


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


def text(entry: Mapping[str, Any], key: str) -> str:
    """A field that must hold some text, stripped of blanks around it.

    Raises:
        KeyError: The field is missing.
        ValueError: It is no text, or blank.
    """
    value = entry[key]
    if not isinstance(value, str):
        raise ValueError(f"field {key!r} is {value!r}, expected text")
    if not value.strip():
        raise ValueError(f"field {key!r} is empty")
    return value.strip()


def texts(entry: Mapping[str, Any], key: str) -> list[str]:
    """A field that must hold at least one text; each is kept as it is.

    Raises:
        KeyError: The field is missing.
        ValueError: It is no list of texts, or an empty one.
    """
    value = entry[key]
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"field {key!r} is {value!r:.80}, expected a list of texts")
    if not value:
        raise ValueError(f"field {key!r} is an empty list")
    return value


def option(entry: Mapping[str, Any], choices: list[str], key: str = "answer") -> int:
    """The index of the right choice.

    Raises:
        KeyError: The field is missing.
        ValueError: It is no index, or beyond the choices.
    """
    index = entry[key]
    if not isinstance(index, int) or isinstance(index, bool):
        raise ValueError(f"field {key!r} is {index!r}, expected the index of a choice")
    if not 0 <= index < len(choices):
        raise ValueError(f"field {key!r} is {index}, but there are {len(choices)} choices (from 0)")
    return index
