"""Bottleneck adapters against their formulas, and as a tuner of peft."""

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from mllm_lit.adapters.bottleneck_tuner import BottleneckConfig


class Toy(nn.Module):
    """One linear layer of unequal sides, with an input to read and an output to write."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, 5) -> (B, 3)``."""
        return self.layer(x)


def wrapped(**options: Any) -> tuple[PeftModel, Any]:
    """The toy with an adapter that is not the identity, and its layer."""
    config = BottleneckConfig(target_modules="layer", size=2, dropout=0.0, **{"init": "normal", **options})
    model = get_peft_model(Toy(), config)  # type: ignore[arg-type]
    layer = model.base_model.model.layer
    for matrix in (layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight):
        nn.init.normal_(matrix)
    return model, layer


X = torch.linspace(-1, 1, 20).view(4, 5)


@pytest.mark.parametrize("scale", [1.0, 0.3])
def test_before_after_and_beside(scale: float) -> None:
    base = Toy().layer

    def parts(layer: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return layer.bottleneck_down["default"].weight, layer.bottleneck_up["default"].weight

    model, layer = wrapped(scale=scale)
    down, up = parts(layer)
    expected = base(X + scale * torch.tanh(X @ down.T) @ up.T)
    torch.testing.assert_close(model(X), expected)

    model, layer = wrapped(scale=scale, after_modules="layer")
    down, up = parts(layer)
    hidden = base(X)
    torch.testing.assert_close(model(X), hidden + scale * torch.tanh(hidden @ down.T) @ up.T)

    model, layer = wrapped(scale=scale, parallel=True, non_linearity="relu")
    down, up = parts(layer)
    torch.testing.assert_close(model(X), base(X) + scale * torch.relu(X @ down.T) @ up.T)


def test_a_learned_scale_is_trained_and_starts_at_the_fixed_one() -> None:
    torch.manual_seed(1)
    fixed, _ = wrapped(scale=0.5)
    torch.manual_seed(1)
    learned, layer = wrapped(scale=0.5, learn_scale=True)
    torch.testing.assert_close(fixed(X), learned(X))
    learned(X).sum().backward()
    assert layer.bottleneck_scale["default"].grad.abs() > 0


def test_zero_is_the_identity_and_normal_is_not() -> None:
    for init, same in (("zero", True), ("normal", False)):
        config = BottleneckConfig(target_modules="layer", size=2, init=init)  # type: ignore[arg-type]
        model = get_peft_model(Toy(), config).eval()  # type: ignore[arg-type]
        assert torch.equal(model(X), Toy()(X)) is same
        with model.disable_adapter():
            assert torch.equal(model(X), Toy()(X))


def test_several_adapters_by_name() -> None:
    model, layer = wrapped()
    first = model(X)
    model.add_adapter("second", BottleneckConfig(target_modules="layer", size=4, init="normal", dropout=0.0))
    assert torch.equal(model(X), first), "an added adapter waits"
    model.set_adapter("second")
    second = model(X)
    assert not torch.equal(second, first)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "base_model.model.layer.bottleneck_down.second.weight",
        "base_model.model.layer.bottleneck_up.second.weight",
    }
    model.base_model.set_adapter(["default", "second"])
    both = model(X)
    assert not torch.equal(both, first)
    assert not torch.equal(both, second)
    model.set_adapter("default")
    model.delete_adapter("second")
    assert torch.equal(model(X), first)
    assert "second" not in layer.bottleneck_down


@pytest.mark.parametrize("merge", ["merge_and_unload", "merge_adapter"])
def test_merging_is_refused_with_the_reason(merge: str) -> None:
    model, _ = wrapped()
    with pytest.raises(ValueError, match="not linear"):
        getattr(model, merge)()


def test_unloading_gives_the_model_back() -> None:
    model, _ = wrapped()
    bare = model.unload()
    assert isinstance(bare.layer, nn.Linear)
    assert torch.equal(bare(X), Toy()(X))


def test_only_linear_layers_are_taken() -> None:
    with pytest.raises(TypeError, match="nn.Linear only"):
        get_peft_model(nn.Sequential(nn.Conv1d(1, 1, 1)), BottleneckConfig(target_modules="0"))  # type: ignore[arg-type]
