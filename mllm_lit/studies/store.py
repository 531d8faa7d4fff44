"""The folder that holds the runs of studies: a cell's directory is called by its key, whatever study asks for it."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mllm_lit.studies.plan import Cell
from mllm_lit.studies.study import StudyError

RUNS = "cells"
STATES = ("done", "running", "failed", "begun", "waiting", "blocked", "to do")


class Store:
    """Finished, begun and failed cells.

    Beside the directory of a run, ``KEY.json`` says what the cell is made from and by which code, ``KEY.log`` what it
    printed, and ``KEY.failed`` how it ended if it did not succeed.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folder = root / RUNS

    def run(self, cell: Cell) -> Path:
        """The run directory of a cell; of a merge, that of the run which is merged."""
        return self.file(cell.after if cell.merge is not None and cell.after is not None else cell)

    def file(self, cell: Cell, suffix: str = "") -> Path:
        """A file beside the run directory, or the directory."""
        return self.folder / f"{cell.key}{suffix}"

    def summary(self, cell: Cell) -> dict[str, Any] | None:
        """What a finished cell has found: ``summary.json``, with the merged model's scores for a merge."""
        if cell.key is None:
            return None
        if cell.merge is None:
            return read(self.file(cell) / "summary.json")
        run, merged = read(self.run(cell) / "summary.json"), read(self.file(cell, ".merge.json"))
        return None if run is None or merged is None else merged_summary(run, merged, cell)

    def state(self, cell: Cell) -> str:
        """One of :data:`STATES`, as far as the cell alone tells."""
        if cell.key is None:
            return "waiting"
        if self.summary(cell) is not None:
            return "done"
        if self.locked(cell):
            return "running"
        if self.file(cell, ".failed").is_file():
            return "failed"
        return "begun" if self.file(cell).is_dir() else "to do"

    def begin(self, cell: Cell) -> None:
        """Write down what a cell is made from."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file(cell, ".failed").unlink(missing_ok=True)
        content = {"cell": cell.name, **(cell.identity or {})}
        self.file(cell, ".json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def end(self, cell: Cell, code: int) -> None:
        """Keep what a merge has written, or how a cell failed."""
        if code == 0 and cell.merge is not None:
            written = self.run(cell) / "merges" / cell.merge.method / "merge.json"
            self.file(cell, ".merge.json").write_text(written.read_text(encoding="utf-8"), encoding="utf-8")
        elif code != 0:
            self.file(cell, ".failed").write_text(f"{code}\n", encoding="utf-8")

    def code(self, cell: Cell) -> str | None:
        """A digest of the code that a begun cell was made by."""
        return (read(self.file(cell, ".json")) or {}).get("code")

    @contextmanager
    def lock(self, cell: Cell) -> Iterator[bool]:
        """Keep others from a cell; gives ``False`` where somebody else runs it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.file(cell, ".lock"))
        try:
            lock.acquire(blocking=False)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    def locked(self, cell: Cell) -> bool:
        """Whether a cell is being run, on this machine or another that shares the folder."""
        if not self.file(cell, ".lock").is_file():
            return False
        with self.lock(cell) as free:
            return not free


def read(file: Path) -> dict[str, Any] | None:
    """A JSON file's content, ``None`` if it is not there."""
    if not file.is_file():
        return None
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content


def merged_summary(run: Mapping[str, Any], merged: Mapping[str, Any], cell: Cell) -> dict[str, Any]:
    """A run's summary with the scores of one point of a merge in place of those after training.

    Raises:
        StudyError: The merge has no such point.
    """
    assert cell.merge is not None
    points = {point["label"]: point for point in merged["points"]}
    if cell.merge.point not in points:
        raise StudyError(
            f"{cell.name}: the merge has no point {cell.merge.point!r}; it has {', '.join(points)}. Set point to one."
        )
    point, told = points[cell.merge.point], {**run}
    told["target"] = {**run["target"], "after": point["target"]}
    told["sources"] = {name: {**row, "after": point["sources"][name]} for name, row in run["sources"].items()}
    told["tradeoff"] = point["tradeoff"]
    told["points"] = [{key: row[key] for key in ("label", "target", "sources", "tradeoff")} for row in merged["points"]]
    told.pop("during", None)
    for row in (told["target"], *told["sources"].values()):
        row.pop("nll_after", None)
        if "forgetting" in row:
            row["forgetting"] = row["before"] - row["after"]
    return told
