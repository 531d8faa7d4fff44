"""Records on their way to a prediction file: written as they come, so that a killed evaluation goes on from there."""

import contextlib
import glob
import json
from pathlib import Path
from typing import Any

from mllm_lit.errors import write_whole, writing
from mllm_lit.evaluation.sets import Record

SAFE = "What was written before is safe: checkpoints (go on with --ckpt_path last) and answers."


class RecordFile:
    """``NAME.jsonl`` in a folder, made of what each rank has written of it; ``.NAME.done`` says what it holds.

    Args:
        folder: Of one evaluation.
        name: Of the set.
        identity: Of all that answers and scores depend on; what was written under another one is of no use.
        rank: This process's rank.
    """

    def __init__(self, folder: Path, name: str, identity: str, rank: int = 0) -> None:
        self.path, self.identity = folder / f"{name}.jsonl", identity
        self.partial, self.done = folder / f"{name}.rank{rank}.partial", folder / f".{name}.done"

    def read(self) -> dict[int, Record]:
        """What an earlier evaluation, stopped or finished, has left, by the samples' places in the split."""
        found: dict[int, Record] = {}
        if self.done.is_file() and self.path.is_file():
            told, *places = lines_in(self.done) or [None]
            records = lines_in(self.path)
            if told == self.identity and len(places) == len(records):
                found = dict(zip(places, records, strict=True))
        for file in self._partial_files():
            told, *pairs = lines_in(file) or [None]
            if told == self.identity:
                found |= {pair[0]: pair[1] for pair in pairs if isinstance(pair, list) and len(pair) == 2}
        return found

    def _partial_files(self) -> list[Path]:
        """Of all ranks, as many as there were."""
        return sorted(self.path.parent.glob(f"{glob.escape(self.path.stem)}.rank*.partial"))

    def start(self, records: dict[int, Record]) -> None:
        """Begin this rank's file anew, with what is known; what is there is replaced at once or not at all."""
        with writing(self.partial, None, SAFE):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.partial, json.dumps(self.identity) + "\n" + lines_of(records))

    def add(self, records: dict[int, Record]) -> None:
        """Write the records of a batch."""
        text = lines_of(records)
        with writing(self.partial, len(text.encode()), SAFE), self.partial.open("a", encoding="utf-8") as file:
            file.write(text)

    def finish(self, records: list[Record], places: list[int]) -> None:
        """Write the whole file, and remove what ranks have written on the way."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with writing(self.path, len(text.encode()), SAFE):
            self.done.unlink(missing_ok=True)
            write_whole(self.path, text)
            write_whole(self.done, "".join(f"{json.dumps(one)}\n" for one in (self.identity, *places)))
        for file in self._partial_files():
            file.unlink(missing_ok=True)


def lines_in(path: Path) -> list[Any]:
    """The JSON values of a file's lines; one that a kill or a disk has damaged is left out."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        with contextlib.suppress(ValueError):
            found.append(json.loads(line))
    return found


def lines_of(records: dict[int, Record]) -> str:
    """A line for each record, with its place in the split."""
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in records.items())
