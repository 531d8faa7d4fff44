"""LLaVA's two stages from their configs, on the embedded model and data: a connector, then connector and LLM."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

FEW = [
    "--trainer.max_steps",
    "2",
    "--trainer.accelerator",
    "cpu",
    "--data.max_eval_samples",
    "2",
    "--data.sources",
    "null",
]
FEW += ["--data.batch_size", "4", "--data.check_images", "false", "--model.max_new_tokens", "2"]


def test_captions_then_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.cli import main
    from mllm_lit.inference.run import load_tuned

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    logs = tmp_path / "logs"
    main(["--config", str(REPOSITORY / "configs" / "llava_pretrain.yaml"), "--output", str(logs), *FEW])
    connector = logs / "llava_pretrain" / "version_0" / "adapter" / "connector.safetensors"
    first = load_file(connector)
    assert {name.rpartition(".")[0] for name in first} == {f"model.multi_modal_projector.layers.{i}" for i in (0, 2)}
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    tuned = load_tuned("", connector.parents[1])
    assert all(torch.equal(tuned.loaded.model.get_parameter(name), value) for name, value in first.items())
    weights = ["--model.backbone.connector_weights", str(connector)]
    config = str(REPOSITORY / "configs" / "llava_instruct.yaml")
    main(["--config", config, "--output", str(logs), *FEW, *weights])
    run = logs / "llava_instruct" / "version_0"
    second = load_file(run / "adapter" / "connector.safetensors")
    assert all(0 < float((second[name] - first[name]).abs().max()) < 1e-3 for name in first), "it starts from the first"
    delta = load_file(run / "adapter" / "delta.safetensors")
    assert any(name.startswith("model.language_model.layers.5.") for name in delta)
    assert not any("vision_tower" in name for name in delta)
    stored = torch.load(logs / "llava_pretrain" / "version_0" / "checkpoints" / "last.ckpt", weights_only=True)
    assert {name.removeprefix("net.") for name in stored["state_dict"]} == first.keys()


def test_the_second_stage_alone_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.backbones import BackboneError
    from mllm_lit.cli import main
    from mllm_lit.errors import UserError

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    weights = ["--model.backbone.connector_weights", str(tmp_path / "none.safetensors")]
    config = str(REPOSITORY / "configs" / "llava_instruct.yaml")
    with pytest.raises(BackboneError, match="connector_weights: there is no file"):
        main(["--config", config, "--output", str(tmp_path / "logs"), *FEW, *weights])
    assert issubclass(BackboneError, UserError), "which the command line answers in words"
