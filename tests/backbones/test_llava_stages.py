"""LLaVA's two stages from their configs, on the embedded model and data: a connector, then connector and LLM."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mllm_lit.errors import SettingError
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
INSTRUCT = str(REPOSITORY / "configs" / "llava_instruct.yaml")


def test_captions_then_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.adapters import Full
    from mllm_lit.backbones import Backbone
    from mllm_lit.cli import main
    from mllm_lit.inference.export import export, probe
    from mllm_lit.inference.run import load_tuned, read_backbone
    from mllm_lit.module import MLLMModule

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    logs = tmp_path / "logs"
    main(["--config", str(REPOSITORY / "configs" / "llava_pretrain.yaml"), "--output", str(logs), *FEW])
    pretrain = logs / "llava_pretrain" / "version_0"
    first = load_file(pretrain / "adapter" / "connector.safetensors")
    assert {name.rpartition(".")[0] for name in first} == {f"model.multi_modal_projector.layers.{i}" for i in (0, 2)}

    # The second stage has another seed, with which the same connector would be drawn otherwise.
    words = ["--model.start_from", str(pretrain), "--seed_everything", "7"]
    main(["--config", INSTRUCT, "--output", str(logs), *FEW, *words])
    run = logs / "llava_instruct" / "version_0"
    second = load_file(run / "adapter" / "connector.safetensors")
    assert all(0 < float((second[name] - first[name]).abs().max()) < 1e-3 for name in first), "it starts from the first"
    delta = load_file(run / "adapter" / "delta.safetensors")
    assert any(name.startswith("model.language_model.layers.5.") for name in delta)
    assert not any("vision_tower" in name for name in delta)
    stored = torch.load(pretrain / "checkpoints" / "last.ckpt", weights_only=True)
    assert {name.removeprefix("net.") for name in stored["state_dict"]} == first.keys()

    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    parts = read_backbone(str(REPOSITORY / "configs" / "backbones" / "embedded_parts.yaml"))
    module = MLLMModule(parts, Full(), start_from=str(pretrain), start="merge")
    module.configure_model()
    assert module.net is not None
    assert module.loaded is not None
    begun = probe(module.loaded.processor, module.net.eval())
    # The way without start_from: the first run written as a folder, which is the second one's backbone.
    export(load_tuned("", pretrain), tmp_path / "exported")
    exported = Backbone(str(tmp_path / "exported")).load()
    assert torch.equal(begun, probe(exported.processor, exported.model))
    untrained = parts.load()
    assert not torch.allclose(begun, probe(untrained.processor, untrained.model), atol=1e-3)


def test_the_second_stage_alone_says_what_it_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingError, match="logs/llava_pretrain/version_0 is no directory of a finished run"):
        main(["--config", INSTRUCT, "--output", str(tmp_path / "logs"), *FEW])
    assert not list((tmp_path / "logs").glob("*/*"))
