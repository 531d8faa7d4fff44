"""MiCA's B is that of the run, also where another machine finds the singular vectors with other signs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from mllm_lit.adapters import Adapter, LoRA
from mllm_lit.adapters.merge import merge_into
from tests.adapters.test_contract import backbone, inputs, learn, logits
from tests.processors.beds import build
from tests.test_module import data, module, trainer


def mica() -> LoRA:
    return LoRA(rank=4, alpha=8, dropout=0.0, lr=1e-2, connector="frozen", init="mica")


def halves(model: nn.Module | None, half: str) -> dict[str, Tensor]:
    assert model is not None
    return {name: p.detach().clone() for name, p in model.named_parameters() if f".lora_{half}." in name}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(other[name], tensor) for name, tensor in one.items())


@pytest.fixture
def flip(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, singular vectors have the other sign."""
    plain = torch.linalg.svd

    def flipped(*args: Any, **options: Any) -> tuple[Tensor, Tensor, Tensor]:
        u, s, vh = plain(*args, **options)
        return -u, s, -vh

    return lambda: monkeypatch.setattr(torch.linalg, "svd", flipped)


def test_what_was_trained_acts_on_the_b_that_it_was_trained_on(flip: Callable[[], None], tmp_path: Path) -> None:
    """Resumed, loaded, gone on with and merged."""
    made = build("llava")
    batch, loaded, adapter = inputs(made), backbone(made), mica()
    model = adapter.attach(loaded)
    model.eval()
    before = logits(model, batch)
    learn(adapter, model, loaded, batch)
    after, first, began = logits(model, batch), halves(model, "B"), adapter.initial_state()
    assert (after - before).abs().max() > 1e-3
    assert same(began, first)
    adapter.save(model, tmp_path)

    flip()
    again, second = mica(), backbone(build("llava"))
    resumed = again.attach(second)
    resumed.eval()
    assert same(again.initial_state(), {name: -tensor for name, tensor in first.items()})
    again.load_initial_state(resumed, began)
    resumed.load_state_dict(halves(model, "A"), strict=False)
    assert torch.equal(logits(resumed, batch), after)
    assert same(again.initial_state(), first)

    assert torch.equal(logits(Adapter.load(backbone(build("llava")), tmp_path), batch), after)

    third, last = mica(), backbone(build("llava"))
    gone_on = third.attach(last)
    third.go_on_from(last, gone_on, tmp_path)
    assert torch.equal(logits(gone_on.eval(), batch), after)
    assert same(third.initial_state(), first)

    bare = backbone(build("llava"))
    merge_into(bare, tmp_path)
    assert (logits(bare.model, batch) - after).abs().max() < 2e-5


def test_a_resumed_run_trains_on_with_it(flip: Callable[[], None], tiny_folder: Path, tmp_path: Path) -> None:
    def train(folder: Path, steps: int, ckpt: Path | None = None) -> nn.Module | None:
        model = module(tiny_folder, mica())
        keep: list[L.Callback] = [ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")]
        fit = trainer(tmp_path, max_steps=steps, callbacks=keep)
        fit.fit(model, datamodule=data(tmp_path), ckpt_path=ckpt)
        return model.net

    whole = train(tmp_path / "whole", 2)
    flip()
    again = train(tmp_path / "again", 2, tmp_path / "whole" / "step=1.ckpt")
    assert any(tensor.any() for tensor in halves(whole, "A").values())
    assert same(halves(whole, "A"), halves(again, "A"))
    assert same(halves(whole, "B"), halves(again, "B"))
    kept = torch.load(tmp_path / "again" / "step=2.ckpt", weights_only=True)
    assert same(kept["mllm_lit"]["initial"], halves(whole, "B"))
    assert not any("lora_B" in name for name in kept["state_dict"])
