"""Merges: their end points, and each against its published formula."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mllm_lit.importance import RandomMask
from mllm_lit.merging import (
    DARE,
    MERGES,
    TIES,
    Grafting,
    Merge,
    MergeError,
    ModelTailor,
    ReduceIntruders,
    WiSEFT,
    hessians,
    sweep,
)


def weights(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    before = {"a": torch.randn(6, 8, generator=generator).to(dtype), "b": torch.randn(5, generator=generator).to(dtype)}
    after = {
        name: (value.float() + 0.1 * torch.randn(value.shape, generator=generator)).to(dtype)
        for name, value in before.items()
    }
    return before, after


ENDS: dict[str, tuple[Callable[[], Merge], Callable[[], Merge]]] = {
    "wise_ft": (lambda: WiSEFT(0.0), lambda: WiSEFT(1.0)),
    "ties": (lambda: TIES(0.0), lambda: TIES(1.0)),
    "ties scale": (lambda: TIES(1.0, scale=0.0), lambda: TIES(1.0, scale=1.0)),
    "grafting": (lambda: Grafting(0.0), lambda: Grafting(1.0)),
    "model_tailor": (lambda: ModelTailor(0.0), lambda: ModelTailor(1.0)),
    "dare": (lambda: WiSEFT(0.0), lambda: DARE(0.0)),  # a drop of 1 is refused: it would divide by zero
    "reduce_intruders": (lambda: WiSEFT(0.0), lambda: ReduceIntruders(scale=1.0)),
    "none": (lambda: WiSEFT(0.0), Merge),
}


def test_every_merge_is_in_the_table() -> None:
    assert {type(one()) for pair in ENDS.values() for one in pair} == set(MERGES.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("start", "end"), ENDS.values(), ids=ENDS.keys())
def test_end_points_to_the_bit(start: Callable[[], Merge], end: Callable[[], Merge], dtype: torch.dtype) -> None:
    before, after = weights(dtype=dtype)
    for name, value in start()(before, after).items():
        assert torch.equal(value, before[name])
        assert value.dtype == dtype
    for name, value in end()(before, after).items():
        assert torch.equal(value, after[name])


@settings(max_examples=20, deadline=None)
@given(st.floats(0, 1), st.integers(0, 1000))
def test_wise_ft(alpha: float, seed: int) -> None:
    before, after = weights(seed)
    for name, value in WiSEFT(alpha)(before, after).items():
        torch.testing.assert_close(value, (1 - alpha) * before[name] + alpha * after[name])


def test_sweep() -> None:
    before, after = weights()
    swept = dict(sweep(before, after, (0.0, 0.25, 1.0)))
    assert list(swept) == [0.0, 0.25, 1.0]
    torch.testing.assert_close(swept[0.25]["a"], 0.75 * before["a"] + 0.25 * after["a"])


def test_dare_drops_its_share_and_keeps_the_expectation() -> None:
    before, after = {"w": torch.zeros(200, 200)}, {"w": torch.ones(200, 200)}
    merged = DARE(0.9, seed=1)(before, after)["w"]
    assert merged.unique().tolist() == pytest.approx([0.0, 10.0])
    assert abs(float(merged.mean()) - 1) < 0.06
    assert torch.equal(merged, DARE(0.9, seed=1)(before, after)["w"])
    assert not torch.equal(merged, DARE(0.9, seed=2)(before, after)["w"])
    assert float(DARE(0.9, rescale=False, seed=1)(before, after)["w"].max()) == 1.0
    with pytest.raises(ValueError, match="drop is 1"):
        DARE(1.0)


def test_dare_does_not_draw_as_the_random_mask_did() -> None:
    """With one seed for both, it would drop just what the rule has trained."""
    parameter = nn.Parameter(torch.zeros(200, 200))
    rule = RandomMask(0.1, seed=1).attach(torch.optim.SGD([parameter], lr=1.0), [("w", parameter)])
    merged = DARE(0.5, seed=1)({"w": torch.zeros(200, 200)}, {"w": rule.mask("w")})["w"]
    assert float((merged > 0).sum()) / float(rule.mask("w").sum()) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("scope", ["model", "tensor"])
def test_ties_trims_the_smallest_changes(scope: str) -> None:
    before, after = weights()
    change = {name: (after[name] - before[name]).abs() for name in after}
    merged = TIES(0.2, scale=0.5, scope=scope)(before, after)  # type: ignore[arg-type]
    whole = torch.cat([value.flatten() for value in change.values()])
    for name, value in merged.items():
        ranked = (whole if scope == "model" else change[name].flatten()).sort(descending=True).values
        kept = change[name] >= ranked[round(0.2 * len(ranked)) - 1]
        torch.testing.assert_close(value, torch.where(kept, (before[name] + after[name]) / 2, before[name]))


def test_grafting_refines_towards_what_the_loss_needs() -> None:
    """The largest change is useless to the loss, a small one is all it needs: only the refined graft finds it."""
    before, after = {"w": torch.zeros(10)}, {"w": torch.linspace(0.1, 1.0, 10)}
    plain = Grafting(0.1, scope="tensor")(before, after)["w"]
    assert plain.nonzero().tolist() == [[9]]
    refined = Grafting(0.1, scope="tensor", steps=50, lr=100.0)
    refined.gradient = lambda weights: {"w": nn.functional.one_hot(torch.tensor(2), 10) * (weights["w"][2] - 5.0)}
    assert refined(before, after)["w"].nonzero().tolist() == [[2]]
    with pytest.raises(MergeError, match=r"merge\.gradient"):
        Grafting(steps=1)(before, after)


def test_model_tailor() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 6, bias=False))
    before = {"0.weight": torch.randn(6, 8)}
    after = {"0.weight": before["0.weight"] + 0.3 * torch.randn(6, 8)}
    x = torch.randn(4, 32, 8) @ torch.randn(8, 8)  # correlated inputs, or there would be nothing to compensate
    with hessians(model, after) as found:
        model(x[:2])
        model(x[2:])
    flat = x.flatten(0, 1)
    torch.testing.assert_close(found["0.weight"], 2 * flat.T @ flat, rtol=1e-4, atol=1e-2)

    plain = ModelTailor(0.25, damping=1e-6, compensate=False)
    fixed = ModelTailor(0.25, damping=1e-6)
    plain.hessians = fixed.hessians = found
    kept_plain, kept_fixed = (merge(before, after)["0.weight"] for merge in (plain, fixed))

    change = (after["0.weight"] - before["0.weight"]).double()
    inverse = torch.linalg.inv(found["0.weight"].double()).diagonal()
    saliency = (after["0.weight"].double() / inverse).square()
    score = sum(0.5 * (s - s.mean()) / s.std() for s in (change.abs(), saliency))
    kept = torch.zeros(48, dtype=torch.bool)
    kept[score.flatten().sort(descending=True).indices[:12]] = True
    kept = kept.view(6, 8)
    assert torch.equal(kept_plain, torch.where(kept, after["0.weight"], before["0.weight"]))

    # The compensation is the least-squares optimum on the calibration inputs, row by row.
    for row in range(6):
        target = flat.double() @ change[row]
        solution = torch.linalg.lstsq(flat[:, kept[row]].double(), target[:, None]).solution[:, 0]
        expected = before["0.weight"][row].double().clone()
        expected[kept[row]] += solution
        torch.testing.assert_close(kept_fixed[row].double(), expected, rtol=1e-3, atol=1e-3)
    error = {n: (flat @ (w - after["0.weight"]).T).norm() for n, w in (("plain", kept_plain), ("fixed", kept_fixed))}
    assert error["fixed"] < error["plain"]
    fixed.hessians = {"0.weight": torch.eye(5)}
    with pytest.raises(MergeError, match=r"\(5, 5\)"):
        fixed(before, after)


def test_weights_of_another_model() -> None:
    before, after = weights()
    with pytest.raises(MergeError, match="merge an adapter"):
        WiSEFT()({"a": before["a"]}, after)
    with pytest.raises(MergeError, match="same model"):
        WiSEFT()({"a": before["a"], "b": torch.zeros(4)}, after)


def test_intruders_as_peft_reduces_them() -> None:
    """peft makes a low-rank adapter of what is left; of full rank here, so that nothing is cut off."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora.intruders import reduce_intruder_dimension

    torch.manual_seed(0)
    layer = nn.Linear(16, 24, bias=False)
    with torch.no_grad():
        layer.weight.mul_(0.1)
    before = {"w": layer.weight.detach().clone()}
    config = LoraConfig(r=16, lora_alpha=8, target_modules=["0"], init_lora_weights=False)
    model = get_peft_model(nn.Sequential(layer), config)  # type: ignore[arg-type]
    low = model.base_model.model[0]
    with torch.no_grad():  # two strong directions that W does not have
        low.lora_A["default"].weight[2:] = 0
        low.lora_B["default"].weight.mul_(3)
    after = {"w": before["w"] + low.get_delta_weight("default").detach()}
    said: list[str] = []
    reduce_intruder_dimension(model, top_k=5, threshold_epsilon=0.7, mitigation_lambda=0.4, logging_sink=said.append)
    assert "Intruders: " in said[0]
    expected = before["w"] + low.get_delta_weight("intruder_reduced").detach()
    merged = ReduceIntruders(top_k=5, epsilon=0.7, scale=0.4)(before, after)["w"]
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)  # fp32, three SVDs
    assert (merged - after["w"]).abs().max() > 1e-2
