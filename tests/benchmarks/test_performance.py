"""docs/performance.md shows misses as misses, and what could not be compared as such."""

import json
from pathlib import Path
from typing import Any


def seen(rows: float, peak: float) -> dict[str, Any]:
    return {"rows per second": rows, "label tokens per second": 2 * rows, "peak_memory_bytes": peak, "first loss": 1.0}


def written(folder: Path, cells: dict[str, Any]) -> str:
    from performance import page

    result = {"commit": "0" * 40, "versions": {}, "device": "a CPU", "threads": 1, "cells": cells}
    (folder / "throughput.json").write_text(json.dumps(result))
    text: str = page(folder)
    return text


def cell_of(ours: dict[str, Any], trainer: dict[str, Any]) -> dict[str, Any]:
    from throughput import CELLS, compared

    cell = next(cell for cell in CELLS if cell.model == "135 M" and cell.questions == 1)
    found = {"ours": ours, "Trainer": trainer, "TRL": {"error": "it broke"}}
    return {"trainers": found, "same first loss": True, **compared(found, cell)}


def test_misses_are_called_so(tmp_path: Path) -> None:
    text = written(tmp_path, {"a cell": cell_of(seen(12.0, 95e6), seen(10.0, 100e6))})
    assert "| a cell | **this package** | 12.00 | 24.0 | 95 | 1.20 (≥ 1.5, missed) | 0.95 (≤ 0.9, missed) |" in text
    assert "- a cell, TRL: it broke" in text


def test_what_is_reached_is_not(tmp_path: Path) -> None:
    text = written(tmp_path, {"a cell": cell_of(seen(15.0, 90e6), seen(10.0, 100e6))})
    assert "| 1.50 (≥ 1.5) | 0.90 (≤ 0.9) |" in text
    assert "missed" not in text


def test_a_comparison_with_another_loss_is_void(tmp_path: Path) -> None:
    from throughput import same_losses

    found = {"ours": seen(20.0, 1e6), "Trainer": seen(10.0, 1e6)}
    assert same_losses(found)
    found["Trainer"]["first loss"] = 1.002
    assert not same_losses(found)
    found["Trainer"]["first loss"] = 1.0
    found["ours, shared pictures"] = seen(30.0, 1e6) | {"first loss": 2.0, "alone": 2.002}
    assert not same_losses(found)
    text = written(tmp_path, {"a cell": cell_of(seen(20.0, 1e6), seen(10.0, 1e6)) | {"same first loss": False}})
    assert "- a cell: void" in text
    assert "20.00" not in text


def test_a_result_that_is_not_there_has_no_section(tmp_path: Path) -> None:
    text = written(tmp_path, {})
    assert [line for line in text.splitlines() if line.startswith("## ")] == ["## Training beside other trainers"]


def test_the_fastest_step_of_the_turns_counts() -> None:
    from throughput import best

    turn = {"rows": [4, 4, 4], "label_tokens": [8, 8, 8], "losses": [1.0], "alone": None, "wall": [1.0, 2.0, 3.0]}
    slow, fast = turn | {"cpu": [9.0, 11.0, 13.0], "peak_bytes": 5}, turn | {"cpu": [1.0, 3.0, 4.0], "peak_bytes": 7}
    found = best([slow, fast], first=1)
    assert (found["rows per second"], found["label tokens per second"], found["peak_memory_bytes"]) == (4.0, 8.0, 5)
    assert best([slow, {"error": "x"}], first=1) == {"error": "x"}
    assert "error" in best([slow | {"cpu": [9.0]}], first=1)
