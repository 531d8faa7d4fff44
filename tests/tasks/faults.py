"""Random faults in the miniature releases, and whether a reader names them."""

import gzip
import json
import random
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from mllm_lit.data.preflight import row_faults
from mllm_lit.tasks import (
    GQA,
    OCRVQA,
    OKVQA,
    POPE,
    BigBench,
    COCOCaptions,
    Conversations,
    Flickr30k,
    HuggingFace,
    IconQA,
    ScienceQA,
    TextVQA,
    VizWiz,
    VQAv2,
)
from mllm_lit.tasks.base import DatasetError, Task
from tests.tasks.releases import RELEASES, picture

READERS: list[tuple[Task, str]] = [
    (ScienceQA(), "train"), (ScienceQA(image_only=True, context=True), "train"), (IconQA(), "test"),
    (IconQA("fill_in_blank"), "test"), (VQAv2(), "val2014"), (OKVQA(), "val2014"), (VizWiz(), "val"),
    (TextVQA(), "val"), (TextVQA(ocr=True), "val"), (OCRVQA(), "test"), (GQA(), "testdev_balanced"),
    (GQA(), "train_all"), (POPE(), "adversarial"), (BigBench(["odd"]), "test"), (COCOCaptions(), "train2014"),
    (COCOCaptions(splits="karpathy"), "test"), (Flickr30k(), "test"), (Conversations(), "train"),
    (HuggingFace(choices="choices", id="id"), "train"),
]  # fmt: skip
LONG = "9" * 5000
VALUES: dict[str, Any] = {
    "null": None, "true": True, "list": [], "object": {}, "number": 7, "negative": -1, "fraction": 0.5, "text": "zz",
    "blank": " ", "empty": "", "lines": "a\nb", "list of one": ["x"], "NUL": "a\0b", "surrogate": "\ud800",
    "NaN": float("nan"), "long name": "n" * 400,
}  # fmt: skip
# Words that Python, and not a reader, finds for bad data.
PYTHONS = re.compile(
    r"NoneType|unhashable|indices must be|object has no attribute|not iterable|invalid literal|unexpected keyword"
    r"|not subscriptable|unsupported operand|not supported between|must be str|expected str instance|Traceback"
    r"|format code|KeyError|TypeError|embedded null byte$"
)


def table(root: Path) -> None:
    """A table in two shards."""
    picture(root / "a.png")
    for shard in range(2):
        columns = {
            "id": [f"{shard}a", f"{shard}b"], "question": ["what?", "which?"], "answer": [0, 1],
            "choices": [["x", "y"]] * 2, "image": ["a.png", "a.png"],
        }  # fmt: skip
        datasets.Dataset.from_dict(columns).to_parquet(str(root / f"train-{shard:05}-of-00002.parquet"))


def release(task: Task, root: Path) -> None:
    """Write the miniature of a task."""
    RELEASES[task.name](root) if task.name in RELEASES else table(root)


@dataclass
class Outcome:
    """What came of a fault.

    Attributes:
        kind: ``harmless``, ``named``, or what is wrong: ``not named``, ``Python's words``, ``crash``.
        fault: What was done.
        told: The message, or what was read.
    """

    kind: str
    fault: str
    told: str


def nodes(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    yield path
    children = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, child in children:
        yield from nodes(child, (*path, key))


def put(content: Any, path: tuple[Any, ...], value: Any) -> Any:
    """The content with one value replaced."""
    if not path:
        return value
    owner = content
    for key in path[:-1]:
        owner = owner[key]
    owner[path[-1]] = value
    return content


def broken_json(text: str, lines: bool, chance: random.Random) -> tuple[str, bytes]:
    """Name of a fault and the content of the file with it."""
    whole: Any = [json.loads(line) for line in text.splitlines()] if lines else json.loads(text)
    paths = [path for path in nodes(whole) if path] or [()]
    path = chance.choice(paths)
    parent = whole
    for key in path[:-1]:
        parent = parent[key]
    how = chance.choice(["value"] * 12 + ["gone", "twice", "renamed", "deep", "digits", "raw"])
    if how == "raw":
        return broken_bytes(text.encode(), chance)
    mark = "@@MARK@@"
    if how == "value":
        how, value = chance.choice(list(VALUES.items()))
        whole = put(whole, path, value)
    elif how == "gone" and path:
        del parent[path[-1]]
    elif how == "twice" and path:
        if isinstance(parent, list):
            parent.append(parent[path[-1]])
        else:
            whole = put(whole, path, mark)
    elif how == "renamed" and path and isinstance(parent, dict):
        parent["renamed"] = parent.pop(path[-1])
    else:
        whole = put(whole, path, mark)
    out = "\n".join(map(json.dumps, whole)) if lines and isinstance(whole, list) else json.dumps(whole)
    quoted = json.dumps(mark)
    if how == "twice":
        out = out.replace(quoted, f"1, {json.dumps(str(path[-1]))}: 2") if quoted in out else out
    out = out.replace(quoted, "[" * 2000 + "]" * 2000 if how == "deep" else LONG)
    return f"{how} at {'/'.join(map(str, path))}", out.encode("utf-8", "surrogatepass")


def broken_bytes(data: bytes, chance: random.Random) -> tuple[str, bytes]:
    """Name of a fault and the bytes with it."""
    cut = chance.randrange(1, max(2, len(data)))
    kinds: dict[str, bytes] = {
        "truncated": data[:cut], "gzipped": gzip.compress(data), "empty file": b"", "not UTF-8": data[:cut] + b"\xff",
        "a list": b"[]", "an object": b"{}", "null file": b"null", "a text": b'"x"',
        "flipped": data[:cut] + b"}" + data[cut:],
    }  # fmt: skip
    how = chance.choice(list(kinds))
    return how, kinds[how]


def broken_table(path: Path, chance: random.Random) -> str:
    """Break a parquet file, or a value in it."""
    if chance.random() < 0.4:
        how, data = broken_bytes(path.read_bytes(), chance)
        path.write_bytes(data)
        return how
    columns = datasets.Dataset.from_parquet(str(path)).to_dict()
    name = chance.choice(list(columns))
    how, value = chance.choice([(h, v) for h, v in VALUES.items() if h not in ("surrogate", "object")])
    whole = chance.random() < 0.3
    columns[name] = [value] * 2 if whole else [value, columns[name][1]]
    try:
        datasets.Dataset.from_dict(columns).to_parquet(str(path))
    except Exception:  # A column of two types cannot be written.
        columns[name] = [value] * 2
        datasets.Dataset.from_dict(columns).to_parquet(str(path))
    return f"{how} in {name}"


def judge(task: Task, split: str, root: Path, file: Path, before: list[Any], fault: str) -> Outcome:
    """Read a release with a fault in one of its files, and score its own answers."""
    try:
        rows = task.rows(root, split)
        found = row_faults(rows)
        if found or not rows:
            told = str(found[0]) if found else "no row"
            return Outcome("named", fault, told)
        metric = task.metric()
        metric.update([row.answer for row in rows], rows)
        metric.compute()
        for row in rows:
            metric.row_scores([row.answer], [row])
    except DatasetError as error:
        told = str(error)
        if PYTHONS.search(told):
            return Outcome("Python's words", fault, told)
        # The file itself, or the one that refers to what is gone from it.
        named = file.name in told or file.parent.name in told or fault.startswith(("gone", "renamed", "text", "number"))
        return Outcome("named" if named else "not named", fault, told)
    except Exception as error:
        return Outcome("crash", fault, f"{type(error).__name__}: {error}")
    return Outcome("harmless", fault, f"{len(rows)} of {len(before)} rows")


def fuzz(seed: int, count: int, folder: Path, progress: Callable[[Any], Any] = iter) -> Iterator[tuple[str, Outcome]]:
    """So many random faults, evenly over the readers; the name of the reader and what came of each."""
    chance = random.Random(seed)
    clean = {}
    for number, (task, split) in enumerate(READERS):
        release(task, folder / f"clean{number}")
        clean[number] = task.rows(folder / f"clean{number}", split)
    for i in progress(range(count)):
        number = i % len(READERS)
        task, split = READERS[number]
        root = folder / "broken"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(folder / f"clean{number}", root)
        files = sorted(p for p in root.rglob("*") if p.suffix in (".json", ".parquet"))
        file = chance.choice(files)
        if file.suffix == ".parquet":
            fault = broken_table(file, chance)
        else:
            fault, data = broken_json(file.read_text(), task.name == "pope", chance)
            file.write_bytes(data)
        yield task.name, judge(task, split, root, file, clean[number], f"{fault} ({file.relative_to(root)})")
