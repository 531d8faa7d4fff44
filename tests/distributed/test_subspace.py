"""Low-rank updates that begin from what layers read: two ranks look at half of it each, and begin alike."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.distributed.ranks import BEGUN, fit, together

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    out = tmp_path_factory.mktemp("subspace")
    (out / "data").mkdir()
    common = {"backbone": tiny_folder, "data": out / "data", "steps": 6}
    found = {(name, "one"): fit(**common, folder=out / f"{name}-one", adapter=name) for name in BEGUN}
    jobs = [{**common, "folder": out / f"{name}-ddp", "adapter": name, "name": "ddp"} for name in BEGUN]
    found |= {(job["adapter"], "ddp"): result for job, result in zip(jobs, together(out, jobs), strict=True)}
    for (name, on), result in found.items():
        kept = torch.load(out / f"{name}-{on}" / "checkpoints" / "last.ckpt", weights_only=True)
        result["initial"] = kept["mllm_lit"]["initial"]
    return found


@pytest.mark.parametrize("name", BEGUN)
def test_two_ranks_begin_and_train_as_one_process_does(runs: Any, name: str) -> None:
    """XᵀX is a sum in another order, in fp64; losses are sums of fp32."""
    one, many = runs[name, "one"], runs[name, "ddp"]
    halves = [key for key in one["initial"] if ".lora_A." in key]
    assert halves
    for key in halves:
        first, second = (run["initial"][key.replace("lora_A", "lora_B")] @ run["initial"][key] for run in (one, many))
        torch.testing.assert_close(second, first, rtol=0, atol=1e-6)
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-5)
