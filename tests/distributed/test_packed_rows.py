"""Rows several to a sequence train what rows alone do: accumulated, replayed, under rules, on one process and on two.

An epoch is one optimizer step, so that the same rows are in a step however they are put into batches.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import drawn, fit, together

pytestmark = pytest.mark.slow

SHARED = {"share_pictures": True, "batch_size": 5}
PACKED = {"pack": True, "batch_size": 6}
BOTH = {"share_pictures": True, "pack": True, "batch_tokens": 140}
ALONE = {"batch_size": 4}
JOBS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "lora shared": ({"adapter": "lora"}, SHARED),
    "lora packed": ({"adapter": "lora"}, PACKED),
    "lora both": ({"adapter": "lora"}, BOTH),
    "full shared": ({"adapter": "full"}, SHARED),
    "full both": ({"adapter": "full"}, BOTH),
    "bottleneck shared": ({"adapter": "bottleneck"}, SHARED),
    "connector shared": ({"adapter": "connector"}, SHARED),
    "replay": ({"adapter": "lora"}, {**BOTH, "replay": 0.3}),
    "spider": ({"adapter": "full", "rule": "spider"}, SHARED),
    "ewc": ({"adapter": "full", "rule": "ewc"}, BOTH),
    "sculpt": ({"adapter": "lora", "rule": "lora_sculpt"}, SHARED),
}
ON_TWO = ("lora shared", "lora both", "full shared", "connector shared", "replay", "spider")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("album") / "data")


def trained(folder: Path) -> dict[str, torch.Tensor]:
    return {key: value for file in folder.glob("adapter/*.safetensors") for key, value in load_file(file).items()}


def check(folder: Path, found: dict[str, Any], alone: Path, expected: dict[str, Any]) -> None:
    assert len(found["losses"]) == 3
    assert expected["losses"][0] - expected["losses"][2] > 1e-3, "it learns"
    torch.testing.assert_close(found["losses"], expected["losses"], rtol=1e-5, atol=1e-5)
    mine, theirs = trained(folder), trained(alone)
    assert mine.keys() == theirs.keys()
    for key, tensor in theirs.items():
        # AdamW divides small gradients by their own size.
        torch.testing.assert_close(mine[key], tensor, rtol=1e-3, atol=1e-4)


def rows_alone(name: str) -> dict[str, Any]:
    """The run that a job is held against: the same rows, each in a sequence of its own."""
    job, settings = JOBS[name]
    return {**job, "album": {**ALONE, **{key: settings[key] for key in settings if key == "replay"}}}


@pytest.fixture(scope="module")
def alone(tiny_folder: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process trains of rows alone."""
    out = tmp_path_factory.mktemp("alone")
    done: dict[str, tuple[Path, dict[str, Any]]] = {}
    for name in JOBS:
        run = rows_alone(name)
        if repr(run) not in done:
            folder = out / str(len(done))
            done[repr(run)] = folder, fit(tiny_folder, data, folder, **run)
    return {name: done[repr(rows_alone(name))] for name in JOBS}


@pytest.mark.parametrize("name", JOBS)
def test_one_process(name: str, tiny_folder: Path, data: Path, tmp_path: Path, alone: Any) -> None:
    job, settings = JOBS[name]
    found = fit(tiny_folder, data, tmp_path, **job, album=settings)
    check(tmp_path, found, *alone[name])


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_ranks(strategy: str, tiny_folder: Path, data: Path, tmp_path: Path, alone: Any) -> None:
    jobs = []
    for name in ON_TWO:
        job, settings = JOBS[name]
        folder = tmp_path / name.replace(" ", "-")
        jobs.append({**job, "backbone": tiny_folder, "data": data, "folder": folder, "album": settings})
    found = together(tmp_path, [{**job, "name": strategy} for job in jobs])
    for name, job, one in zip(ON_TWO, jobs, found, strict=True):
        check(job["folder"], one, *alone[name])
