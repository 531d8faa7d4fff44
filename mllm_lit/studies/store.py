"""The folder that holds the runs of studies: a cell's directory is called by its key, whatever study asks for it."""

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mllm_lit.errors import write_whole
from mllm_lit.run_directory import FOLDER as CHECKPOINTS
from mllm_lit.run_directory import lock
from mllm_lit.studies.plan import Cell
from mllm_lit.studies.study import StudyError

RUNS = "cells"
UNFINISHED = ("to do", "begun", "waiting")


class Store:
    """Finished, begun and failed cells.

    Beside the directory of a run, ``KEY.json`` says what the cell is made from and by which code, ``KEY.log`` what it
    printed, and ``KEY.failed`` how it ended if it did not succeed.

    Args:
        root: The folder.
        kept: Summaries of cells that were finished elsewhere, by key.
        codes: Digests of the code that they were made by.
    """

    def __init__(
        self, root: Path, kept: Mapping[str, dict[str, Any]] | None = None, codes: Mapping[str, str] | None = None
    ) -> None:
        self.root, self.kept, self.codes = root, kept or {}, codes or {}
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
        run = read_json(self.run(cell) / "summary.json")
        merged = None if cell.merge is None else read_json(self.file(cell, ".merge.json"))
        if run is None or (cell.merge is not None and merged is None):
            kept = self.kept.get(cell.key)
            if kept is None or cell.merge is None or kept.get("point", cell.merge.point) == cell.merge.point:
                return kept
            return merged_summary(kept, kept, cell)
        return run if merged is None else merged_summary(run, merged, cell)

    def state(self, cell: Cell) -> str:
        """``done``, ``running``, ``failed``, ``begun``, ``waiting`` for a rate or ``to do``; of the cell alone."""
        if cell.key is None:
            return "waiting"
        if self.summary(cell) is not None:
            return "done"
        if self.locked(cell):
            return "running"
        if self.file(cell, ".failed").is_file():
            return "failed"
        return "begun" if self.file(cell).is_dir() else "to do"

    def states(self, cells: Iterable[Cell]) -> list[tuple[Cell, str]]:
        """Each cell's state; ``blocked`` where one that it depends on has failed. Such have to stand before it.

        A cell whose result is kept and whose run is not here is ``to do`` where another has to start from its weights.
        """
        found: dict[str, str] = {}
        told = []
        for cell in cells:
            state = self.state(cell)
            depends = [*cell.waits, *([cell.after.key] if cell.after is not None and cell.after.key else [])]
            if state in UNFINISHED and any(found.get(key) in ("failed", "blocked") for key in depends):
                state = "blocked"
            if cell.key is not None:
                found[cell.key] = state
            told.append((cell, state))
        wanted: set[str | None] = set()
        for place, (cell, state) in reversed([*enumerate(told)]):
            if state == "done" and cell.key in wanted and not (self.file(cell) / "summary.json").is_file():
                told[place] = cell, (state := "to do")
            if state != "done" and cell.after is not None:
                wanted.add(cell.after.key)
        return told

    def begin(self, cell: Cell) -> None:
        """Write down what a cell is made from."""
        self.file(cell, ".failed").unlink(missing_ok=True)
        content = {"cell": cell.name, **(cell.identity or {})}
        write_whole(self.file(cell, ".json"), json.dumps(content, indent=1) + "\n")

    def end(self, cell: Cell, status: int) -> None:
        """Keep what a merge has written, or the status with which a cell failed; checkpoints of one that is done go.

        What was trained stays in the run directory, for merges and later stages, without the optimizer's state.
        A run that was interrupted ends with status 0 and without a summary; it goes on where it is started again.
        """
        if status:
            self.fail(cell, f"status {status}")
        elif cell.merge is not None:
            written = self.run(cell) / "merges" / cell.merge.method / "merge.json"
            write_whole(self.file(cell, ".merge.json"), written.read_text(encoding="utf-8"))
        elif (self.run(cell) / "summary.json").is_file():
            shutil.rmtree(self.run(cell) / CHECKPOINTS, ignore_errors=True)

    def fail(self, cell: Cell, how: str) -> None:
        """Write down how a cell failed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.file(cell, ".failed").write_text(f"{how}\n", encoding="utf-8")

    def code(self, cell: Cell) -> str | None:
        """A digest of the code that a begun or kept cell was made by."""
        return (read_json(self.file(cell, ".json")) or {}).get("code") or self.codes.get(str(cell.key))

    def lock(self, cell: Cell) -> int | None:
        """Keep others from a cell, or from other merges of its run, on all machines that share the folder.

        Returns:
            A file descriptor that holds the lock as long as it, or a process that has inherited it, is open; ``None``
            where somebody else holds it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return lock(self.file(cell, ".lock") if cell.merge is None else self.run(cell).with_suffix(".merging"))

    def locked(self, cell: Cell) -> bool:
        """Whether a cell is being run."""
        if not self.folder.is_dir():
            return False
        if (held := self.lock(cell)) is None:
            return True
        os.close(held)
        return False


def read_json(file: Path) -> dict[str, Any] | None:
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
    from mllm_lit.metrics import normalised

    assert cell.merge is not None
    points = {point["label"]: point for point in merged["points"]}
    if cell.merge.point not in points:
        raise StudyError(
            f"{cell.name}: the merge has no point {cell.merge.point!r}; it has {', '.join(points)}. Set point to one."
        )
    point, told = points[cell.merge.point], {**run}
    told["target"] = {**run["target"], "after": point["target"]}
    told["sources"] = {name: {**row, "after": point["sources"][name]} for name, row in run["sources"].items()}
    told["tradeoff"], told["point"] = point["tradeoff"], cell.merge.point
    if point["tradeoff"]:
        rows = told["sources"].values()
        kept = normalised([row["before"] for row in rows], [row["after"] for row in rows])
        told["tradeoff"] = {**point["tradeoff"], "A_S_normalised": kept}
    told["points"] = [{key: row[key] for key in ("label", "target", "sources", "tradeoff")} for row in merged["points"]]
    for name in ("during", "scores"):
        told.pop(name, None)
    if "scores" in point:
        told["scores"] = {**run.get("scores", {}), "after": point["scores"]}
    for row in (told["target"], *told["sources"].values()):
        row.pop("nll_after", None)
        if "forgetting" in row:
            row["forgetting"] = row["before"] - row["after"]
    return told
