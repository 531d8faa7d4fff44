"""AdamW in one fused pass: the updates of torch's own loop, whatever reads or changes gradients before it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision

from mllm_lit.importance import Rule, Spider
from mllm_lit.module import MLLMModule
from tests.test_module import data, module, trainer, weights


def trained(root: Path, folder: Path, rule: Rule | None = None, **more: Any) -> MLLMModule:
    torch.manual_seed(0)
    model = module(folder, importance=rule)
    trainer(root, max_steps=4, **more).fit(model, datamodule=data(root))
    return model


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("rule", [None, Spider])
def test_the_fused_optimizer_equals_the_other(
    rule: Any, clip: float | None, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = module(tiny_folder)
    start.configure_model()
    fused = trained(tmp_path, tiny_folder, rule and rule(), gradient_clip_val=clip)
    adamw: Any = torch.optim.AdamW
    assert [group["fused"] for group in fused.optimizers().param_groups] == [True, True, True]  # type: ignore[union-attr]
    monkeypatch.setattr(torch.optim, "AdamW", lambda groups, fused, **more: adamw(groups, foreach=False, **more))
    other = trained(tmp_path, tiny_folder, rule and rule(), gradient_clip_val=clip)
    assert not any(group["fused"] for group in other.optimizers().param_groups)  # type: ignore[union-attr]
    before, expected = weights(start), weights(other)
    assert max(float((expected[name] - before[name]).abs().max()) for name in before) > 1e-3
    for name, weight in weights(fused).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_gradients_are_clipped_under_autocast(precision: Any, tiny_folder: Path, tmp_path: Path) -> None:
    """What is clipped is the gradient itself, not the gradient times the loss's scale."""
    norms: list[float] = []

    class Clipped(MLLMModule):
        def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
            super().configure_gradient_clipping(optimizer, *args, **kwargs)
            grads = [p.grad for p in self.parameters() if p.grad is not None]
            norms.append(float(torch.nn.utils.get_total_norm(grads)))

    model = module(tiny_folder)
    model.__class__ = Clipped
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0) if precision == "16-mixed" else None
    plugins = MixedPrecision(precision, "cpu", scaler)
    trainer(tmp_path, max_steps=3, gradient_clip_val=0.05, plugins=plugins).fit(model, datamodule=data(tmp_path))
    assert all(group["fused"] for group in model.optimizers().param_groups)  # type: ignore[union-attr]
    assert norms == pytest.approx([0.05] * 3, rel=1e-2)
