"""``precision: auto``: what is chosen for a machine, what the run says of it, and what its weights are in."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins import MixedPrecision

from mllm_lit.adapters import LoRA
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.load import has_amx
from mllm_lit.cli import build, main
from mllm_lit.module import MLLMModule
from mllm_lit.trainer import MLLMTrainer, choose_precision
from tests.checkpoints.process import write_config
from tests.conftest import REPOSITORY

TINY_LORA = {"class_path": "mllm_lit.adapters.LoRA", "init_args": {"rank": 4}}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what this machine is taken for."""

    def take_for(amx: bool = False, cuda: bool = False, cuda_bf16: bool = False, mps: bool = False) -> None:
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
        monkeypatch.setattr(CUDAAccelerator, "is_available", staticmethod(lambda: cuda))
        monkeypatch.setattr(MPSAccelerator, "is_available", staticmethod(lambda: mps))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Some GPU")
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda_bf16 or including_emulation
        )

    return take_for


@pytest.mark.parametrize(
    ("has", "accelerator", "expected", "why"),
    [
        ({}, "auto", "32-true", "this CPU has no AMX tiles"),
        ({"amx": True}, "auto", "bf16-mixed", "this CPU has AMX tiles"),
        ({"amx": True}, CPUAccelerator(), "bf16-mixed", "this CPU has AMX tiles"),
        ({"cuda": True, "cuda_bf16": True}, "auto", "bf16-mixed", "Some GPU has bf16"),
        ({"cuda": True, "cuda_bf16": True}, "cpu", "32-true", "this CPU has no AMX tiles"),
        ({"cuda": True, "amx": True}, "gpu", "32-true", "Some GPU has no bf16"),
        ({"mps": True, "amx": True}, "auto", "32-true", "mps is no device on which bf16 is known to be faster"),
        ({"amx": True}, "tpu", "32-true", "tpu is no device on which bf16 is known to be faster"),
    ],
)
def test_bf16_where_the_device_that_is_used_multiplies_it(
    machine: Any, has: dict[str, bool], accelerator: Any, expected: str, why: str
) -> None:
    machine(**has)
    assert choose_precision(accelerator) == (expected, why)


def test_a_torch_without_the_probe_has_no_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cpu, "_is_amx_tile_supported", raising=False)
    assert not has_amx()


def test_a_precision_that_is_set_is_left_alone(machine: Any) -> None:
    machine(amx=True)
    assert MLLMTrainer(accelerator="cpu", logger=False).precision == "bf16-mixed"
    for given, expected in (("32-true", "32-true"), (None, "32-true"), ("bf16-mixed", "bf16-mixed")):
        trainer = MLLMTrainer(accelerator="cpu", precision=given, logger=False)  # type: ignore[arg-type]
        assert (trainer.precision, trainer.precision_reason) == (expected, "as set")
    trainer = MLLMTrainer(accelerator="cpu", plugins=[MixedPrecision("16-mixed", "cpu")], logger=False)
    assert (trainer.precision, trainer.precision_reason) == ("16-mixed", "of the plugin")


@pytest.mark.parametrize("amx", [True, False])
@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
def test_frozen_weights_are_in_bf16_where_a_cpu_computes_in_it(
    machine: Any, tiny_folder: Path, amx: bool, precision: str
) -> None:
    machine(amx=amx)
    model = MLLMModule(Backbone(str(tiny_folder)), LoRA(rank=4))
    model.trainer = L.Trainer(accelerator="cpu", precision=precision, logger=False)  # type: ignore[arg-type]
    model.configure_model()
    assert model.net is not None
    frozen = {p.dtype for p in model.net.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if amx and precision == "bf16-mixed" else torch.float32}
    assert {p.dtype for _, p in model.trainable()} == {torch.float32}


def test_auto_is_the_default_and_other_words_still_reach_lightning(tmp_path: Path) -> None:
    default = yaml.safe_load((REPOSITORY / "configs" / "trainer" / "default.yaml").read_text())
    assert default["precision"] == "auto"
    config = {"model": {"backbone": "mllm_lit.backbones.Backbone", "adapter": "mllm_lit.adapters.LoRA"}}
    config["data"] = str(REPOSITORY / "configs" / "tasks" / "scienceqa.yaml")  # type: ignore[assignment]
    built = build(config, ["--trainer.precision", "bf16-mixed", "--trainer.limit_val_batches", "1"])
    assert built.trainer.precision == "bf16-mixed"
    assert built.trainer.limit_val_batches == 1
    assert isinstance(built.trainer.limit_val_batches, int)


@pytest.mark.slow
def test_a_run_says_what_it_chose_and_goes_on_where_the_choice_is_another(
    machine: Any, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: Any
) -> None:
    machine(amx=False)
    settings = write_config(tmp_path, tiny_folder, TINY_LORA)
    text = yaml.safe_load(settings.read_text())
    text["trainer"]["precision"] = "auto"
    text["trainer"]["accelerator"] = "cpu"
    settings.write_text(yaml.safe_dump(text))
    main(["--config", str(settings), "--trainer.max_steps", "4"])
    assert "precision: 32-true (auto: this CPU has no AMX tiles)" in capsys.readouterr().out
    folder = tmp_path / "logs" / "toy" / "version_0"
    found = json.loads((folder / "summary.json").read_text())["precision"]
    assert found == {"used": "32-true", "why": "auto: this CPU has no AMX tiles"}
    assert yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["precision"] == "auto"
    machine(amx=True)
    caplog.clear()
    main(["--config", str(settings), "--version", "version_0", "--ckpt_path", "last", "--trainer.max_steps", "8"])
    assert "precision: bf16-mixed (auto: this CPU has AMX tiles)" in capsys.readouterr().out
    assert "From here on the precision is bf16-mixed; the checkpoint's run had 32-true." in caplog.text
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["precision"]["used"], summary["cost"]["steps"]) == ("bf16-mixed", 8)
