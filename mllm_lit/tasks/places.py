"""Where the rows of one's own data lie: a file, a folder with a file a split, or a data set of the Hugging Face hub."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from mllm_lit.data.faults import DatasetError, Fault, read_text
from mllm_lit.tasks.files import parse
from mllm_lit.tasks.huggingface import entries_of, import_datasets, read_parquet, undecoded

SUFFIXES = (".jsonl", ".json", ".parquet")
ALIASES = {"train": ("train",), "val": ("val", "validation", "valid", "dev", "eval"), "test": ("test",)}
"""Names that the split of a role may have."""
ABOUT = ("dataset_info", "dataset_infos", "state")
"""JSON files that hold no rows."""
SHARD = re.compile(r"-\d+-of-\d+\Z")


def hub_id(root: Path) -> str | None:
    """The id of a data set of the hub, ``OWNER/NAME`` or ``hf://OWNER/NAME``, unless a file or folder has that name.

    >>> hub_id(Path("hf://someone/cats")), hub_id(Path("someone/cats.jsonl")), hub_id(Path("/data/cats"))
    ('someone/cats', None, None)
    """
    text = root.as_posix()
    if (named := re.fullmatch(r"hf:/+([\w.-]+/[\w.-]+)", text)) is not None:
        return named[1]
    plain = re.fullmatch(r"\w[\w.-]*/[\w.-]+", text) is not None and root.suffix not in SUFFIXES
    return text if plain and not root.exists() else None


def find_splits(root: Path, config_name: str | None = None) -> dict[str, list[Path]]:
    """Every split, and its files; of the hub, the splits with no files.

    A file is the split ``train``, and so is the only data file of a folder.

    Raises:
        DatasetError: The file is of another kind, the folder holds no data, two files could be one split, or the hub
            has no such data set.
    """
    if (name := hub_id(root)) is not None:
        return {split: [] for split in _hub_splits(name, config_name)}
    if root.is_file():
        if root.suffix not in SUFFIXES:
            raise DatasetError(f"{root} is a {root.suffix or 'file without a suffix'}, expected {', '.join(SUFFIXES)}")
        return {"train": [root]}
    files = sorted(path for place in (root, root / "data") for path in place.glob("*") if path.suffix in SUFFIXES)
    splits: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.stem not in ABOUT:
            splits[SHARD.sub("", path.stem)].append(path)
    for name, paths in splits.items():
        whole = [path for path in paths if not SHARD.search(path.stem)]
        if len(paths) > 1 and whole:
            raise DatasetError(
                f"{root}: {', '.join(str(path.relative_to(root)) for path in paths)} could each be the split {name!r}; "
                "leave one, or give a file as root"
            )
    if len(splits) == 1 and next(iter(splits)) not in {name for names in ALIASES.values() for name in names}:
        return {"train": next(iter(splits.values()))}
    return dict(splits)


def named(splits: dict[str, list[Path]], split: str, root: Path) -> str | None:
    """The split of that name, or else the one that plays its role; ``None`` if there is none.

    Raises:
        DatasetError: Two could play it.
    """
    if split in splits:
        return split
    found = [name for name in ALIASES.get(split, ()) if name in splits]
    if len(found) > 1:
        raise DatasetError(f"{root}: {' and '.join(found)} could each be the split {split!r}; name one (data.*_split)")
    return found[0] if found else None


def records(path: Path) -> list[tuple[str, Any]]:
    """Every row of a file, as it is: its line in JSON lines (from 1), its place in a list or table (from 0).

    Raises:
        DatasetError: The file cannot be read; a fault of JSON is named by its line.
    """
    if path.suffix == ".parquet":
        return _table(str(path), read_parquet([path], str(path)))
    text = read_text(path)
    if text.lstrip()[:1] == "[":
        content = _json(path, text)
        return [(str(place), row) for place, row in enumerate(content)]
    rows: list[tuple[str, Any]] = []
    faults: list[Fault] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append((str(number), _json(path, line)))
        except DatasetError as error:
            told = re.sub(r"^line 1, ", "", str(error).removeprefix(f"{path}: "))
            faults.append(Fault(str(path), str(number), told))
    if faults:
        first = faults[0].reason
        if len(faults) == len(text.splitlines()) or text.lstrip()[:1] not in "{":
            raise DatasetError(f"{path} is neither a list of rows nor a row a line; line {faults[0].row}: {first}")
        raise DatasetError.of(faults)
    return rows


def _json(path: Path, text: str) -> Any:
    """JSON, by the fast parser where it would not hide a fault."""
    try:
        content = msgspec.json.decode(text)
        # msgspec keeps the last of two equal keys; then there are fewer than in the text.
        if msgspec.json.encode(content).count(b":") == text.count(":"):
            return content
    except (msgspec.DecodeError, RecursionError):
        pass
    return parse(path, text)


def hub_records(name: str, split: str, config_name: str | None = None) -> list[tuple[str, Any]]:
    """Every row of a split of the hub, downloaded to the cache of ``datasets``."""
    datasets = import_datasets(name)
    return _table(f"{name}/{split}", datasets.load_dataset(name, config_name, split=split))


def _hub_splits(name: str, config_name: str | None) -> list[str]:
    datasets = import_datasets(name)
    try:
        splits: list[str] = datasets.get_dataset_split_names(name, config_name)
    except Exception as error:  # of the network, the hub, or a choice of configurations
        raise DatasetError(
            f"there is no file or folder {name!r} (tried {Path(name).absolute()}), and as a data set of the Hugging "
            f"Face hub it could not be read: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error
    return splits


def _table(source: str, table: Any) -> list[tuple[str, Any]]:
    for name in table.column_names:
        table = undecoded(table, name)
    return [(str(row), {name: _cell(entry[name]) for name in entry}) for row, entry in entries_of(source, table)]


def _cell(value: Any) -> Any:
    """A cell of a table; bytes as a declared picture has them."""
    if isinstance(value, list):
        return [_cell(item) for item in value]
    return {"bytes": value} if isinstance(value, bytes) else value


def renamed(rows: list[tuple[str, Any]], columns: dict[str, str], source: str) -> Iterator[tuple[str, Any]]:
    """Rows whose fields are called as they are read.

    Args:
        rows: As they are.
        columns: What is read -> what it is called there.
        source: For the message.

    Raises:
        DatasetError: No row has a field of that name.
    """
    there = Counter(name for _, row in rows if isinstance(row, dict) for name in row)
    absent = sorted(set(columns.values()) - there.keys())
    if absent and rows:
        raise DatasetError(f"{source}: task.columns names {absent}; the fields are {', '.join(map(str, there))}")
    theirs = {name: ours for ours, name in columns.items()}
    for place, row in rows:
        if isinstance(row, dict):
            row = {theirs.get(name, name): row[name] for name in row if name in theirs or name not in columns}
        yield place, row
