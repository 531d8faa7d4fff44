"""DDP and FSDP2 on two ranks do what one process does, text-only rows among the batches."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import ADAPTERS, drawn, fit, together

pytestmark = pytest.mark.slow

STRATEGIES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(adapter, strategy) -> report; then each checkpoint of the middle is carried on by another strategy."""
    out = tmp_path_factory.mktemp("ranks")
    (out / "data").mkdir()
    common = {"backbone": tiny_folder, "data": out / "data"}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    jobs = []
    for adapter in ADAPTERS:
        score = adapter == "lora"
        found[adapter, "one"] = fit(**common, folder=out / f"{adapter}-one", adapter=adapter, score=score)
        for name in STRATEGIES:
            jobs.append({"folder": out / f"{adapter}-{name}", "adapter": adapter, "name": name, "score": score})
    for name in STRATEGIES:
        job = {"adapter": "lora", "name": name, "score": True, "cache": True}
        jobs.append({**job, "folder": out / f"lora-{name}-cached"})
    for source, target in (("one", "ddp"), ("one", "fsdp2"), ("ddp", "fsdp2"), ("fsdp2", "ddp")):
        resume = out / f"lora-{source}" / "checkpoints" / "step=8.ckpt"
        jobs.append({"folder": out / f"lora-{source}-{target}", "adapter": "lora", "name": target, "resume": resume})
    results = together(out, [{**common, **job} for job in jobs])
    for job, result in zip(jobs, results, strict=True):
        found[job["adapter"], job["folder"].name.removeprefix(f"{job['adapter']}-")] = result
    for source in STRATEGIES:
        folder = out / f"lora-{source}-one"
        resume = out / f"lora-{source}" / "checkpoints" / "step=8.ckpt"
        found["lora", f"{source}-one"] = fit(**common, folder=folder, adapter="lora", resume=resume)
    for (adapter, name), result in found.items():
        folder = out / f"{adapter}-{name}"
        result["tensors"] = {
            key: tensor for file in folder.glob("adapter/*.safetensors") for key, tensor in load_file(file).items()
        }
        result["checkpoint"] = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return found


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_loss_trace_is_that_of_one_process(runs: Any, adapter: str, name: str) -> None:
    one, many = runs[adapter, "one"], runs[adapter, name]
    assert len(one["losses"]) == 11
    assert max(one["losses"]) - min(one["losses"]) > 0.05, "it learns"
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-5)
    assert many["tensors"].keys() == one["tensors"].keys()
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(many["tensors"][key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_cached_vision_features_change_nothing(runs: Any, name: str) -> None:
    plain, cached = runs["lora", name], runs["lora", f"{name}-cached"]
    assert cached["losses"] == plain["losses"]
    assert cached["after"] == plain["after"]


@pytest.mark.parametrize("name", STRATEGIES)
def test_scores_are_those_of_one_process(runs: Any, name: str) -> None:
    one, many = runs["lora", "one"], runs["lora", name]
    for phase in ("before", "after"):
        assert many[phase]["toy"] == pytest.approx(one[phase]["toy"], abs=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_checkpoints_have_one_form(runs: Any, adapter: str, name: str) -> None:
    one, many = runs[adapter, "one"]["checkpoint"], runs[adapter, name]["checkpoint"]
    shapes = [{key: value.shape for key, value in stored["state_dict"].items()} for stored in (one, many)]
    assert shapes[0] == shapes[1]
    states = [stored["optimizer_states"][0] for stored in (one, many)]
    assert states[0]["state"].keys() == states[1]["state"].keys()
    for index, entry in states[0]["state"].items():
        for key, value in entry.items():
            torch.testing.assert_close(states[1]["state"][index][key], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("way", ["one-ddp", "one-fsdp2", "ddp-fsdp2", "fsdp2-ddp", "ddp-one", "fsdp2-one"])
def test_a_checkpoint_moves_between_strategies(runs: Any, way: str) -> None:
    one, moved = runs["lora", "one"], runs["lora", way]
    torch.testing.assert_close(moved["losses"], one["losses"][8:], rtol=0, atol=1e-5)
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(moved["tensors"][key], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", STRATEGIES)
def test_kept_scores_reach_every_rank(tiny_folder: Path, tmp_path: Path, name: str) -> None:
    job = {"backbone": tiny_folder, "data": drawn(tmp_path / "data"), "adapter": "lora", "name": name, "steps": 1}
    job |= {"keep": tmp_path / "kept", "score": True}
    (first,) = together(tmp_path, [{**job, "folder": tmp_path / "first"}])
    (place,) = (path for path in (tmp_path / "kept").iterdir() if path.is_dir())
    assert json.loads((place / "scores.json").read_text()) == first["before"]
    planted = {name: dict.fromkeys(scores, 12.5) for name, scores in first["before"].items()}
    (place / "scores.json").write_text(json.dumps(planted))
    together(tmp_path, [{**job, "folder": tmp_path / "second"}])
    for rank in range(2):
        assert torch.load(tmp_path / f"rank{rank}.pt", weights_only=True)[0]["before"] == planted
    assert {path.name for path in (tmp_path / "kept").iterdir()} == {place.name, f"{place.name}.lock"}


def test_ddp_as_it_is_does_not_wait_for_a_rank_without_pictures(tiny_folder: Path, tmp_path: Path) -> None:
    """--trainer.strategy ddp, which does not look for tensors without a gradient unless it is told to."""
    job = {"backbone": tiny_folder, "data": drawn(tmp_path / "data"), "adapter": "lora", "steps": 4}
    told, plain = together(tmp_path, [{**job, "folder": tmp_path / name, "name": name} for name in ("ddp", "plain")])
    assert plain["losses"] == told["losses"]
