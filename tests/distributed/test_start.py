"""Runs that start from another, on two ranks: with the same θ0 and the same weights as in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.distributed.ranks import fit, together

pytestmark = pytest.mark.slow

CASES = [(start, name) for start in ("keep", "merge") for name in ("ddp", "fsdp2")]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(start, strategy) -> report with the trained tensors; those named ``again`` are resumed from one process."""
    out = tmp_path_factory.mktemp("starts")
    (out / "data").mkdir()
    common = {"backbone": tiny_folder, "data": out / "data", "adapter": "full"}
    first = out / "first"
    fit(**common, folder=first)
    settings = {"seed_everything": 42, "model": {"backbone": {"init_args": {"path": str(tiny_folder)}}}}
    (first / "config.yaml").write_text(yaml.safe_dump(settings | {"data": {}, "trainer": {}}))
    common |= {"start_from": str(first)}
    found, jobs = {}, {}
    for start in ("keep", "merge"):
        job = {**common, "start": start, "rule": "l2sp_base", "steps": 8}
        found[start, "one"] = fit(**job, folder=out / f"{start}-one")
        resume = out / f"{start}-one" / "checkpoints" / "step=4.ckpt"
        for name in ("ddp", "fsdp2"):
            jobs[start, name] = {**job, "folder": out / f"{start}-{name}", "name": name}
        jobs[start, "again"] = {**job, "folder": out / f"{start}-again", "name": "fsdp2", "resume": resume}
    found["keep", "from start"] = fit(**common, rule="l2sp", steps=8, folder=out / "keep-from start")
    found |= zip(jobs, together(out, list(jobs.values())), strict=True)
    for (start, name), result in found.items():
        files = (out / f"{start}-{name}" / "adapter").glob("*.safetensors")
        result["tensors"] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    return found


@pytest.mark.parametrize(("start", "name"), [*CASES, ("keep", "again"), ("merge", "again")])
def test_two_ranks_train_what_one_process_trains(runs: Any, start: str, name: str) -> None:
    one, many = runs[start, "one"], runs[start, name]
    torch.testing.assert_close(many["losses"], one["losses"][-len(many["losses"]) :], rtol=0, atol=1e-4)
    assert many["tensors"].keys() == one["tensors"].keys()
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(many["tensors"][key], tensor, rtol=1e-3, atol=2e-4)


def test_keep_and_merge_of_full_tuning_are_the_same_and_the_base_matters(runs: Any) -> None:
    kept, merged, other = (runs[key]["tensors"] for key in (("keep", "one"), ("merge", "one"), ("keep", "from start")))
    assert all(torch.equal(tensor, merged[name]) for name, tensor in kept.items())
    assert max(float((tensor - other[name]).abs().max()) for name, tensor in kept.items()) > 1e-3
