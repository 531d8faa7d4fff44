"""Importance rules on two ranks choose, pull and penalise as in one process."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.distributed.ranks import RULES, drawn, fit, together

pytestmark = pytest.mark.slow

REFUSED = {
    ("gradient_topk_row", "fsdp2"): "is one row split over ranks; use scope: tensor",
    ("dowser", "fsdp2"): "ModelDowser probes unsharded weights",
    ("lora_sculpt", "fsdp2"): "The regulariser multiplies whole factors: use DDP",
}
ACCEPTED = [(rule, name) for rule in RULES for name in ("ddp", "fsdp2") if (rule, name) not in REFUSED]


RESUMED = ("spider", "ewc")
"""Rules with buffers as large as the weights: a sum that grows, and one that stays."""


def adapter_of(rule: str) -> str:
    return "lora" if rule == "lora_sculpt" else "full"


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(rule, strategy) -> report with the trained tensors; the rule ``none`` is plain training."""
    out = tmp_path_factory.mktemp("rules")
    (out / "data").mkdir()
    common = {"backbone": tiny_folder, "data": out / "data", "steps": 6}
    found = {("none", "one"): fit(**common, folder=out / "none-one", adapter="full")}
    for rule in RULES:
        found[rule, "one"] = fit(**common, folder=out / f"{rule}-one", adapter=adapter_of(rule), rule=rule)
    jobs = [
        {**common, "folder": out / f"{rule}-{name}", "adapter": adapter_of(rule), "name": name, "rule": rule}
        for rule, name in ACCEPTED
    ]
    again = [(rule, name) for rule, name in ACCEPTED if rule in RESUMED]
    for rule, name in again:
        job = jobs[ACCEPTED.index((rule, name))]
        resume = out / f"{rule}-{name}" / "checkpoints" / "step=4.ckpt"
        jobs.append({**job, "folder": out / f"{rule}-{name}_again", "resume": resume})
    found |= zip([*ACCEPTED, *((rule, f"{name}_again") for rule, name in again)], together(out, jobs), strict=True)
    for rule in RESUMED:  # what several ranks have saved goes on in one process
        job = {**common, "adapter": adapter_of(rule), "rule": rule}
        resume = out / f"{rule}-fsdp2" / "checkpoints" / "step=4.ckpt"
        found[rule, "one_again"] = fit(**job, folder=out / f"{rule}-one_again", resume=resume)
    for (rule, name), result in found.items():
        files = (out / f"{rule}-{name}" / "adapter").glob("*.safetensors")
        result["tensors"] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    return found


@pytest.mark.parametrize(("rule", "name"), ACCEPTED)
def test_two_ranks_train_what_one_process_trains(runs: Any, rule: str, name: str) -> None:
    one, many = runs[rule, "one"], runs[rule, name]
    torch.testing.assert_close(many["losses"], one["losses"], rtol=0, atol=1e-4)
    assert many["tensors"].keys() == one["tensors"].keys()
    for key, tensor in one["tensors"].items():
        torch.testing.assert_close(many["tensors"][key], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["ddp_again", "fsdp2_again", "one_again"])
@pytest.mark.parametrize("rule", RESUMED)
def test_a_resumed_run_goes_on_with_the_whole_state(runs: Any, rule: str, name: str) -> None:
    """From a checkpoint in the middle; each rank gets its own part of every buffer back."""
    whole = runs[rule, "fsdp2" if name != "ddp_again" else "ddp"]
    torch.testing.assert_close(runs[rule, name]["losses"], whole["losses"][4:], rtol=0, atol=1e-4)
    for key, tensor in whole["tensors"].items():
        torch.testing.assert_close(runs[rule, name]["tensors"][key], tensor, rtol=1e-3, atol=2e-4)


@pytest.mark.parametrize("rule", [rule for rule in RULES if adapter_of(rule) == "full"])
def test_the_rule_matters(runs: Any, rule: str) -> None:
    plain, ruled = runs["none", "one"]["tensors"], runs[rule, "one"]["tensors"]
    assert max(float((ruled[key] - plain[key]).abs().max()) for key in plain) > 1e-3


@pytest.mark.parametrize(("rule", "name"), REFUSED)
def test_what_cannot_be_sharded_is_refused(tiny_folder: Path, tmp_path: Path, rule: str, name: str) -> None:
    job = {"backbone": tiny_folder, "data": drawn(tmp_path / "data"), "folder": tmp_path, "adapter": adapter_of(rule)}
    with pytest.raises(AssertionError, match=REFUSED[rule, name]):
        together(tmp_path, [{**job, "name": name, "rule": rule, "steps": 2}], limit=60)
