"""Records on their way to a prediction file: written as they come, so that a killed evaluation goes on from there."""

import json
import os
from pathlib import Path

from mllm_lit.errors import writing
from mllm_lit.evaluation.sets import Record

SAFE = "Checkpoints that were written before are safe: go on from them with --ckpt_path last."


class RecordFile:
    """``NAME.jsonl`` in a folder, made of what each rank has written of it.

    Args:
        folder: Of one evaluation.
        name: Of the set.
        identity: Of weights and samples; what was written under another one is of no use.
        rank: This process's rank.
    """

    def __init__(self, folder: Path, name: str, identity: str, rank: int = 0) -> None:
        self.path, self.identity = folder / f"{name}.jsonl", identity
        self.partial = folder / f"{name}.rank{rank}.partial"

    def read(self) -> dict[int, Record]:
        """What an evaluation that was stopped has left of this rank's samples, by their place in the split."""
        if not self.partial.is_file():
            return {}
        # The last line is empty, or was cut when the process ended.
        lines = self.partial.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]
        if not lines or lines[0] != json.dumps(self.identity):
            return {}
        return dict(json.loads(line) for line in lines[1:])

    def start(self, records: dict[int, Record]) -> None:
        """Begin the file anew, with what is known; what is there is replaced at once or not at all."""
        beginning = self.partial.with_name(f"{self.partial.name}.tmp")
        with writing(self.partial, None, SAFE):
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            beginning.write_text(json.dumps(self.identity) + "\n" + lines_of(records), encoding="utf-8")
            os.replace(beginning, self.partial)

    def add(self, records: dict[int, Record]) -> None:
        """Write the records of a batch."""
        text = lines_of(records)
        with writing(self.partial, len(text.encode()), SAFE), self.partial.open("a", encoding="utf-8") as file:
            file.write(text)

    def finish(self, records: list[Record]) -> None:
        """Write the whole file, in one go."""
        text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        with writing(self.path, len(text.encode()), SAFE):
            self.path.write_text(text, encoding="utf-8")

    def drop_partial(self) -> None:
        """Remove what this rank has written on the way."""
        self.partial.unlink(missing_ok=True)


def lines_of(records: dict[int, Record]) -> str:
    """A line for each record, with its place in the split."""
    return "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in records.items())
