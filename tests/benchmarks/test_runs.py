"""The scripts that measure run, and what they compare is the same training."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_all_trainers_see_the_same_rows_and_losses(tmp_path: Path, tuning: str) -> None:
    from throughput import Cell, Comparison

    from mllm_lit.backbones.load import EMBEDDED
    from mllm_lit.tasks import VQAv2, embedded_root

    cell = Cell("embedded", tuning, 16, 1, batch=4, first=1, steps=2, turns=1)
    rows = VQAv2().rows(embedded_root("vqav2"), "train2014")
    comparison = Comparison(cell, EMBEDDED, 128, rows, tmp_path, threads=1)
    names = ["ours", "Trainer", *(["TRL"] if find_spec("trl") else [])]
    for name in names:
        comparison.turn(name)
    runs = {name: comparison.runs[name][0] for name in names}
    assert not [run["error"] for run in runs.values() if "error" in run]
    ours, *peers = runs.values()
    assert len(ours["cpu"]) == 3
    assert ours["losses"][0] == pytest.approx(ours["alone"], abs=1e-5)
    for peer in peers:
        assert len(peer["cpu"]) == 3
        assert (peer["rows"], peer["label_tokens"]) == (ours["rows"], ours["label_tokens"])
        # Later losses differ by the numbers that dropout draws.
        assert peer["losses"][0] == pytest.approx(ours["losses"][0], abs=1e-4)
        assert peer["losses"] == pytest.approx(ours["losses"], abs=0.05 if tuning == "lora" else 1e-3)
    assert comparison.result()["same first loss"]


def errors(tree: Any) -> list[str]:
    """All that went wrong in a result."""
    if not isinstance(tree, dict):
        return []
    return [tree["error"]] if "error" in tree else [error for part in tree.values() for error in errors(part)]


def test_the_benchmark_of_a_gpu_runs_at_a_small_size(tmp_path: Path) -> None:
    out = tmp_path / "gpu_small.json"
    command = [sys.executable, str(REPOSITORY / "benchmarks" / "gpu.py"), "--small", "--out", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    result = json.loads(out.read_text(encoding="utf-8"))
    assert result["small"]
    assert errors(result) == []
    for case in result["training"].values():
        assert case["ours"]["rows per second"] > 0
        assert case["ours"]["first loss"] == pytest.approx(case["Trainer"]["first loss"], abs=1e-3)
        # The same rows, so the same tokens in the same batches.
        ratios = [run["tokens per second"] / run["rows per second"] for run in (case["ours"], case["Trainer"])]
        assert ratios[0] == pytest.approx(ratios[1])
    assert 0 < result["spider"]["share of a step"] < 1
    assert set(result["evaluation"]) == {f"{each} a picture" for each in (1, 5, 30)}
