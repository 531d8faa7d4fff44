"""LoRA's dropout by geometric distances: torch's Bernoulli, seeded, and drawn again alike by recomputation."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from mllm_lit.adapters import LoRA
from mllm_lit.adapters.dropout import GeometricDropout, dropped_positions
from mllm_lit.backbones.layout import find_layout
from mllm_lit.backbones.load import LoadedBackbone, checkpoint_activations
from tests.tiny import tiny_backbone


@pytest.mark.parametrize("p", [0.05, 0.1, 0.5, 0.9])
def test_each_element_is_dropped_independently_with_p(p: float) -> None:
    torch.manual_seed(0)
    count = 400_000
    kept = GeometricDropout(p)(torch.ones(count)).ne(0).double()
    spread = (p * (1 - p) / count) ** 0.5
    assert float(kept.mean()) == pytest.approx(1 - p, abs=4 * spread)
    ends = torch.stack((kept[: count // 8], kept[-count // 8 :])).mean(1)  # as often at either end
    assert ends.tolist() == pytest.approx([1 - p] * 2, abs=4 * spread * 8**0.5)
    for lag in (1, 2, 3, 4, 20):
        both = float((kept[lag:] * kept[:-lag]).mean())
        assert both == pytest.approx((1 - p) ** 2, abs=5 * spread)


@pytest.mark.parametrize("shape", [(1,), (7,), (3, 5, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_kept_is_scaled_so_that_the_mean_stays(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    dropout, x = GeometricDropout(0.5), torch.ones(shape, dtype=dtype, requires_grad=True)
    torch.manual_seed(1)
    out = dropout(x)
    assert (out.shape, out.dtype) == (x.shape, dtype)
    assert set(out.detach().unique().tolist()) <= {0.0, 2.0}
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, out.detach())
    values = GeometricDropout(0.05)(torch.ones(1000, dtype=dtype)).unique()
    torch.testing.assert_close(values, torch.tensor([0.0, 1 / 0.95], dtype=dtype), rtol=1e-6, atol=0.0)


def test_distances_have_the_law_of_torchs() -> None:
    """Chi-squared of the distances between dropped elements against (1 - p)^(k - 1) p, for both."""
    p, cells = 0.2, 25
    for dropout in (GeometricDropout(p), nn.Dropout(p)):
        torch.manual_seed(5)
        at = dropout(torch.ones(500_000)).eq(0).nonzero().flatten()
        gaps = (at[1:] - at[:-1]).clamp(max=cells)
        expected = torch.tensor([(1 - p) ** (k - 1) * p for k in range(1, cells)] + [(1 - p) ** (cells - 1)])
        expected *= len(gaps)
        chi = float(((gaps.bincount(minlength=cells + 1)[1:] - expected).square() / expected).sum())
        assert chi < 51.2  # the 99.9th percentile of 24 degrees of freedom


def test_positions_go_on_where_the_first_draw_falls_short(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr("mllm_lit.adapters.dropout.math.sqrt", lambda value: -value / 8)
    positions = dropped_positions(100_000, 0.3)
    assert len(positions) == pytest.approx(30_000, abs=4 * (100_000 * 0.3 * 0.7) ** 0.5)
    assert (positions[1:] > positions[:-1]).all()
    assert 0 <= positions[0] < positions[-1] < 100_000


def test_a_transposed_input_and_an_expanded_gradient() -> None:
    x = torch.ones(6, 5, requires_grad=True)
    out = GeometricDropout(0.5)(x.t())
    out.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad.t(), out.detach())
    assert GeometricDropout(0.5)(torch.ones(0, 4)).shape == (0, 4)


@pytest.mark.parametrize(("p", "value"), [(0.0, 1.0), (1.0, 0.0)])
def test_the_ends_are_torchs(p: float, value: float) -> None:
    assert torch.equal(GeometricDropout(p)(torch.ones(5)), torch.full((5,), value))


def test_on_another_device_it_is_torchs() -> None:
    assert GeometricDropout(0.5)(torch.ones(5, device="meta")).device.type == "meta"


def test_evaluation_drops_nothing() -> None:
    assert torch.equal(GeometricDropout(0.5).eval()(torch.ones(9)), torch.ones(9))


def test_recomputation_draws_the_same_mask() -> None:
    layer = nn.Sequential(GeometricDropout(0.5), nn.Linear(64, 64), GeometricDropout(0.5))
    x = torch.randn(8, 64)
    grads = []
    for recompute in (False, True):
        torch.manual_seed(3)
        layer.zero_grad()
        out = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        out.square().sum().backward()
        assert layer[1].weight.grad is not None
        grads.append(layer[1].weight.grad.clone())
    assert torch.equal(*grads)


@pytest.mark.slow
@pytest.mark.parametrize("recompute", [False, True])
def test_compiled_masks_are_the_plain_ones_and_no_two_are_one(recompute: bool) -> None:
    layer = nn.Sequential(GeometricDropout(0.5), nn.Linear(64, 64), nn.Tanh(), GeometricDropout(0.5))

    def plain(x: torch.Tensor) -> torch.Tensor:
        return checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)

    x, found = torch.randn(8, 64), []
    for forward in (plain, torch.compile(plain, fullgraph=True, dynamic=True)):
        torch.manual_seed(3)
        layer.zero_grad()
        out = forward(x)
        out.square().sum().backward()
        assert layer[1].weight.grad is not None
        found.append((out.detach(), layer[1].weight.grad.clone()))
    torch.testing.assert_close(found[0], found[1])
    twice = torch.compile(lambda x: (layer[0](x), layer[3](x)), fullgraph=True)(x)
    assert not torch.equal(*twice)


@pytest.mark.parametrize("dora", [False, True])
def test_loras_masks_follow_the_seed_with_and_without_checkpointing(dora: bool) -> None:
    found: list[dict[str, Any]] = []
    for seed, recompute in ((1, False), (1, True), (2, False)):
        model, processor = tiny_backbone()
        layout = find_layout(model)
        if recompute:
            checkpoint_activations(model, layout, "llm")
        net = LoRA(rank=4, dropout=0.3, use_dora=dora, init="gaussian").attach(
            LoadedBackbone(model, processor, layout, "", "")
        )
        drops = [module for module in net.modules() if isinstance(module, nn.Dropout) and module.p == 0.3]
        assert len(drops) == 14
        assert all(isinstance(module, GeometricDropout) for module in drops)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            for name, parameter in net.named_parameters():
                if "lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator).abs() * 0.05)
        torch.manual_seed(seed)
        ids = torch.arange(5, 45).view(2, 20)
        loss = net(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None}
        found.append({"loss": loss.detach(), **grads})
    plain, recomputed, other = found
    for name, value in plain.items():
        torch.testing.assert_close(recomputed[name], value)
    assert plain["loss"] != other["loss"]
