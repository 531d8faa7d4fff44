"""Objectives on two ranks: what the model says before training is shared out, and a step is that of one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mllm_lit.backbones.load import EMBEDDED
from tests.distributed.ranks import OBJECTIVES, fit, together

pytestmark = pytest.mark.slow
STRATEGIES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(objective, strategy) -> report with the trained tensors."""
    out = tmp_path_factory.mktemp("objectives")
    (out / "data").mkdir()
    common = {"data": out / "data", "steps": 6, "adapter": "full"}
    found = {("none", "one"): fit(**common, backbone=tiny_folder, folder=out / "none-one")}
    backbones = {name: EMBEDDED if name == "budget" else tiny_folder for name in OBJECTIVES}  # it has to answer
    for name, backbone in backbones.items():
        found[name, "one"] = fit(**common, backbone=backbone, folder=out / f"{name}-one", objective=name)
    jobs = {
        (name, on): {
            **common,
            "backbone": backbones[name],
            "folder": out / f"{name}-{on}",
            "name": on,
            "objective": name,
        }
        for name in OBJECTIVES
        for on in STRATEGIES
    }
    found |= zip(jobs, together(out, list(jobs.values())), strict=True)
    for (name, on), result in found.items():
        files = (out / f"{name}-{on}" / "adapter").glob("*.safetensors")
        result["tensors"] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    return found


TINY = [name for name in OBJECTIVES if name != "budget"]


@pytest.mark.parametrize("on", STRATEGIES)
@pytest.mark.parametrize("name", TINY)
def test_two_ranks_train_what_one_process_trains(runs: Any, name: str, on: str) -> None:
    """Losses of sums in another order, hence 1e-4."""
    one, many = runs[name, "one"], runs[name, on]
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-4)
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(many["tensors"][key], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("on", STRATEGIES)
def test_ranks_share_out_the_look_at_held_out_samples(runs: Any, on: str) -> None:
    """And mix in the same answers of the model. Sums in another order, hence 1e-4; weights by their norm, since Adam
    takes whole steps on the gradients that are nothing but rounding, of which so many weights have some."""
    one, many = runs["budget", "one"], runs["budget", on]
    assert one["strength"] != OBJECTIVES["budget"]().strength  # type: ignore[attr-defined]
    assert many["strength"] == pytest.approx(one["strength"], rel=1e-4)
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-4)
    for key, tensor in one["tensors"].items():
        assert (many["tensors"][key] - tensor).norm() <= 1e-4 * tensor.norm(), key


@pytest.mark.parametrize("name", TINY)
def test_the_objective_matters(runs: Any, name: str) -> None:
    plain, other = runs["none", "one"]["tensors"], runs[name, "one"]["tensors"]
    assert max(float((other[key] - plain[key]).abs().max()) for key in plain) > 1e-3
