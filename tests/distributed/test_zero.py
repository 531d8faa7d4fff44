"""DeepSpeed's ZeRO on two CPU ranks does what DDP does; it is an optional package."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy
from safetensors.torch import load_file

from mllm_lit.errors import SettingError
from mllm_lit.strategies import ZeROStrategy
from tests.distributed.ranks import drawn, together

pytest.importorskip("deepspeed")
pytestmark = [pytest.mark.slow, pytest.mark.optional]


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    out = tmp_path_factory.mktemp("zero")
    common = {"backbone": tiny_folder, "data": drawn(out / "data"), "score": True}
    jobs = [
        {"folder": out / f"{adapter}-{name}", "adapter": adapter, "name": name}
        for adapter in ("lora", "full")
        for name in ("ddp", "zero2")
    ]
    resume = out / "lora-zero2" / "checkpoints" / "step=8.ckpt"
    jobs.append({"folder": out / "lora-resumed", "adapter": "lora", "name": "zero2", "resume": resume})
    results = together(out, [{**common, **job} for job in jobs])
    for job, result in zip(jobs, results, strict=True):
        files = job["folder"].glob("adapter/*.safetensors")
        result["tensors"] = {key: tensor for file in files for key, tensor in load_file(file).items()}
    return {job["folder"].name: result for job, result in zip(jobs, results, strict=True)}


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_zero_trains_as_ddp_does(runs: dict[str, dict[str, Any]], adapter: str) -> None:
    """But in the tenth step, without any picture: DDP leaves the connector alone, ZeRO's momentum moves it."""
    ddp, zero = runs[f"{adapter}-ddp"], runs[f"{adapter}-zero2"]
    assert len(zero["losses"]) == 11
    torch.testing.assert_close(zero["losses"][:10], ddp["losses"][:10], rtol=0, atol=1e-5)
    assert zero["losses"][10] == pytest.approx(ddp["losses"][10], abs=1e-3)
    assert zero["tensors"].keys() == ddp["tensors"].keys()
    for key, tensor in ddp["tensors"].items():
        atol = 1e-4 if "projector" in key else 1e-5
        torch.testing.assert_close(zero["tensors"][key], tensor, rtol=1e-3, atol=atol)
    assert zero["after"]["toy"] == pytest.approx(ddp["after"]["toy"], abs=1e-2)


def test_zero_goes_on_from_its_checkpoint(runs: dict[str, dict[str, Any]]) -> None:
    whole, resumed = runs["lora-zero2"], runs["lora-resumed"]
    assert resumed["losses"] == whole["losses"][8:]
    assert resumed["before"] == whole["before"]
    assert all(torch.equal(resumed["tensors"][key], tensor) for key, tensor in whole["tensors"].items())


def test_what_deepspeed_cannot_do_is_refused() -> None:
    import lightning as L

    from mllm_lit.module import check_trainer

    with pytest.raises(SettingError, match="expected 1 or 2"):
        ZeROStrategy(stage=3)
    trainer = L.Trainer(strategy=DeepSpeedStrategy(), accelerator="cpu", logger=False)
    with pytest.raises(SettingError, match="ZeROStrategy"):
        check_trainer(trainer)
