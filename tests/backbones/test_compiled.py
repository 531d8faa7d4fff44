"""Compiled blocks: the losses of the plain ones, one graph for all of them, and none for evaluation."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from mllm_lit.adapters import Adapter, Full, LoRA
from mllm_lit.backbones import Backbone, BackboneError
from mllm_lit.callbacks.resume import FREE
from mllm_lit.errors import SettingError
from mllm_lit.importance import Rule, Spider
from mllm_lit.module import MLLMModule
from mllm_lit.strategies import FSDP2Strategy
from tests.test_module import data, trainer


def lora() -> Adapter:
    return LoRA(rank=4, alpha=8, dropout=0.0, lr=1e-3, connector="tuned")


def full() -> Adapter:
    return Full(lr=1e-4)


def losses(folder: Path, root: Path, adapter: Adapter, rule: Rule | None, **options: Any) -> list[float]:
    """Of five steps."""
    torch.manual_seed(0)
    found: list[float] = []

    class Noted(MLLMModule):
        def log(self, name: str, value: Any, *args: Any, **kwargs: Any) -> None:
            if name == "train/loss":
                found.append(float(value))

    model = Noted(Backbone(str(folder), dtype="float32", **options), adapter, importance=rule)
    trainer(root, max_steps=5).fit(model, datamodule=data(root))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("adapter", "rule", "checkpointing"), [(lora, None, "llm"), (full, Spider, None)])
def test_the_losses_are_those_of_plain_blocks(
    adapter: Any, rule: Any, checkpointing: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    options = {"gradient_checkpointing": checkpointing}
    plain = losses(tiny_folder, tmp_path, adapter(), rule and rule(), **options)
    torch._dynamo.reset()
    counters.clear()
    compiled = losses(tiny_folder, tmp_path, adapter(), rule and rule(), **options, compile=True)
    assert len(plain) == 5
    assert plain[0] != pytest.approx(plain[-1], abs=1e-4)
    assert compiled == pytest.approx(plain, abs=1e-4)
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # blocks share it at every length; with and without padding
    assert not counters["graph_break"]


@pytest.mark.slow
def test_answers_are_generated_and_scored_without_compiling(tiny_folder: Path) -> None:
    torch._dynamo.reset()
    counters.clear()
    model = MLLMModule(Backbone(str(tiny_folder), dtype="float32", compile=True), lora())
    model.configure_model()
    assert model.net is not None
    net: Any = model.net.eval()
    names = [name for name, _ in net.named_parameters()]
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        net(input_ids=ids, use_cache=False)
        out = net.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
    assert out.shape[1] > 10
    assert not counters["stats"]
    net(input_ids=ids, use_cache=False).logits.sum().backward()
    assert 1 <= counters["stats"]["unique_graphs"] <= 2  # the first block's input asks for no gradient
    assert names == [name for name, _ in net.named_parameters()]


def test_what_cannot_be_compiled_is_refused(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"backbone.quantization: 4bit.* Set one of the two"):
        Backbone(quantization="4bit", compile=True)
    model = MLLMModule(Backbone(str(tiny_folder), dtype="float32", compile=True), lora())
    model._trainer = type("Sharded", (), {"precision": "32-true", "strategy": FSDP2Strategy()})()
    monkeypatch.setattr("mllm_lit.module.check_trainer", lambda trainer: None)
    with pytest.raises(SettingError, match=r"compile: true with FSDP2Strategy.* use configs/trainer/ddp.yaml"):
        model.configure_model()


def test_a_run_may_go_on_with_it() -> None:
    assert "model.backbone.compile" in FREE


def test_a_missing_compiler_is_named_before_anything_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    nowhere = torch._inductor.config.patch("cpp.cxx", ("/nonexistent/g++",))
    with nowhere, pytest.raises(BackboneError, match=r"no C\+\+ compiler .* Install g\+\+"):
        MLLMModule(Backbone(path="nowhere", compile=True), LoRA()).configure_model()
