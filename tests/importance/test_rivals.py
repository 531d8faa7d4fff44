"""Every rule keeps its contract; each equals its published definition written out."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mllm_lit.importance
from mllm_lit.importance import (
    EWC,
    L2SP,
    ChildTuningD,
    ChildTuningF,
    GradientTopK,
    HalfFineTuning,
    LoRASculpt,
    MagnitudeMask,
    ModelDowser,
    MoFO,
    RandomMask,
    Rule,
    RuleError,
    Spider,
)
from mllm_lit.importance.sculpt import conflict


class Net(nn.Module):
    """Two blocks of two matrices and a norm, and a LoRA pair beside a frozen base, all in one small regression."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"up": nn.Linear(6, 10), "down": nn.Linear(10, 6), "norm": nn.LayerNorm(6)}) for _ in range(2)
        )
        self.q = nn.Module()
        self.q.base_layer = nn.Linear(6, 6, bias=False).requires_grad_(False)
        self.q.lora_A = nn.ModuleDict({"default": nn.Linear(6, 3, bias=False)})
        self.q.lora_B = nn.ModuleDict({"default": nn.Linear(3, 6, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + block["down"](torch.tanh(block["up"](block["norm"](x))))
        return self.q.base_layer(x) + self.q.lora_B["default"](self.q.lora_A["default"](x))


def batches(model: nn.Module, seed: int, rows: int = 8) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        x, y = (torch.randn(rows, 6, generator=generator) for _ in range(2))
        model.zero_grad(set_to_none=True)
        (model(x) - y).square().mean().backward()
        yield rows


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in trained(model).items()}


def begin(rule: Rule | None, decay: float = 0.0, prepare: bool = True) -> tuple[Net, torch.optim.Optimizer]:
    model = Net()
    optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=decay)
    if rule is not None:
        rule.attach(optimizer, model.named_parameters())
        if prepare:
            rule.prepare(batches(model, seed=5), model)
    return model, optimizer


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 1) -> None:
    stream = batches(model, seed)
    for _ in range(steps):
        next(stream)
        nn.utils.clip_grad_norm_(trained(model).values(), 1.0)
        optimizer.step()


TABLE: dict[str, tuple[Callable[[], Rule], float]] = {
    "none": (Rule, 0.1),
    "spider": (Spider, 0.1),
    "magnitude": (MagnitudeMask, 0.1),
    "magnitude gradients": (lambda: MagnitudeMask(apply="gradients"), 0.0),
    "random": (lambda: RandomMask(seed=3), 0.1),
    "half": (lambda: HalfFineTuning(seed=3), 0.1),
    "gradient tensor": (lambda: GradientTopK(0.2, batches=2), 0.1),
    "gradient row": (lambda: GradientTopK(0.2, scope="row"), 0.1),
    "child f": (lambda: ChildTuningF(seed=3), 0.1),
    "child d": (lambda: ChildTuningD(batches=4), 0.1),
    "mofo": (lambda: MoFO(0.2), 0.1),
    "l2sp": (L2SP, 0.1),
    "l2sp decoupled": (lambda: L2SP(2.0, form="decoupled"), 0.1),
    "ewc": (lambda: EWC(rows=4), 0.1),
    "sculpt": (lambda: LoRASculpt(0.3, prune_at=3), 0.1),
}


def test_every_rule_is_in_the_table() -> None:
    here = {type(make()) for make, _ in TABLE.values()} | {ModelDowser}  # Dowser has its own file
    kinds = {getattr(mllm_lit.importance, name) for name in mllm_lit.importance.__all__}
    assert here == {kind for kind in kinds if issubclass(kind, Rule)}


@pytest.mark.parametrize(("make", "decay"), TABLE.values(), ids=TABLE.keys())
def test_contract(make: Callable[[], Rule], decay: float) -> None:
    """Frozen tensors stay; an entry with a fixed mask of 0 is θ0 to the bit; kill and resume is bit-exact."""
    rule = make()
    model, optimizer = begin(rule, decay)
    base, theta0 = model.q.base_layer.weight.clone(), values(Net())
    assert all(torch.equal(value, theta0[name]) for name, value in values(model).items())  # attaching moves nothing
    train(model, optimizer, 4)
    assert torch.equal(model.q.base_layer.weight, base)
    assert any(not torch.equal(value, theta0[name]) for name, value in values(model).items())
    if not isinstance(rule, MoFO | LoRASculpt | HalfFineTuning):
        for name, value in values(model).items():
            mask = rule.mask(name)
            if mask is not None:
                assert torch.equal(value[mask == 0], theta0[name][mask == 0])
    saved = {"rule": rule.state_dict(), "model": model.state_dict(), "opt": optimizer.state_dict()}
    state: dict[str, Any] = deepcopy(saved)
    again_rule = make()
    again, its_optimizer = begin(again_rule, decay, prepare=False)
    again.load_state_dict(state["model"])
    its_optimizer.load_state_dict(state["opt"])
    again_rule.load_state_dict(state["rule"])
    for one in ((model, optimizer), (again, its_optimizer)):
        train(*one, 4, seed=9)
    for name, value in values(model).items():
        assert torch.equal(value, values(again)[name]), name
    for figures in rule.statistics().values():
        assert all(bool(value.isfinite()) for value in figures.values())


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda share, apply: MagnitudeMask(share, apply),
        lambda share, apply: RandomMask(share, 3, apply),
        lambda share, apply: GradientTopK(share, apply=apply),
        lambda share, apply: ChildTuningD(share, 4, apply),
    ],
    ids=["magnitude", "random", "gradient", "child d"],
)
def test_fixed_masks_act_alike_on_weights_and_gradients(make: Callable[[float, str], Rule], share: float) -> None:
    """True without weight decay, with moments that start at zero, and without clipping, which sees the mask."""
    results = []
    for apply in ("weights", "gradients"):
        model, optimizer = begin(make(share, apply))
        stream = batches(model, 1)
        for _ in range(5):
            next(stream)
            optimizer.step()
        results.append(values(model))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-5, atol=1e-7)


def test_gradient_masks_refuse_weight_decay() -> None:
    with pytest.raises(RuleError, match="weight_decay is 0.1"):
        begin(MagnitudeMask(apply="gradients"), decay=0.1)


def test_data_driven_rules_ask_for_their_data() -> None:
    for rule in (GradientTopK(), ChildTuningD(), EWC()):
        model, optimizer = begin(rule, prepare=False)
        next(batches(model, 1))
        with pytest.raises(RuleError, match="prepare"):
            optimizer.step()
    rule = GradientTopK(batches=4)
    begin(rule, prepare=False)
    with pytest.raises(RuleError, match="wants the gradients of 4 batches"):
        rule.prepare(iter([]))
    with pytest.raises(ValueError, match="importance.frozen is 1.5; expected a number from 0 to 1"):
        MagnitudeMask(1.5)


def test_magnitude() -> None:
    rule = MagnitudeMask(0.4)
    model, _ = begin(rule)
    for name, value in values(model).items():
        count = round(0.4 * value.numel())
        frozen = value.abs().flatten().sort(descending=True, stable=True).indices[:count]
        expected = torch.ones(value.numel())
        expected[frozen] = 0
        assert torch.equal(rule.mask(name).flatten(), expected)


def test_random_mask_depends_on_seed_and_name_alone() -> None:
    torch.manual_seed(8)
    one, two, other = RandomMask(0.3, seed=1), RandomMask(0.3, seed=1), RandomMask(0.3, seed=2)
    for rule in (one, two, other):
        begin(rule)
    name = "blocks.0.up.weight"
    assert torch.equal(one.mask(name), two.mask(name))
    assert not torch.equal(one.mask(name), other.mask(name))
    big = nn.Parameter(torch.zeros(100, 200))
    rule = RandomMask(0.3, seed=1).attach(torch.optim.SGD([big], lr=1), [("w", big)])
    assert abs(float(rule.mask("w").mean()) - 0.3) < 0.015


def test_half_takes_half_of_each_category_and_reselects() -> None:
    names = [
        f"layers.{i}.{name}.weight"
        for i in range(8)
        for name in ("attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down", "norm1", "norm2")
    ]
    parameters = [(name, nn.Parameter(torch.ones(2))) for name in names]
    optimizer = torch.optim.AdamW([p for _, p in parameters], lr=0.1, weight_decay=0.5)
    rule = HalfFineTuning(seed=0).attach(optimizer, parameters)
    first = set(rule.trained)
    for i in range(8):
        assert sum(name.startswith(f"layers.{i}.attn") for name in first) == 2
        assert sum(name.startswith(f"layers.{i}.norm") for name in first) == 1
    assert sum(".mlp." in name for name in first) == 12  # one or two of three, in turns
    for _, p in parameters:
        p.grad = torch.ones(2)
    optimizer.step()
    assert {name for name, p in parameters if not torch.equal(p, torch.ones(2))} == first
    rule.on_epoch_start(1)
    assert rule.trained != first
    rule.on_epoch_start(0)
    assert rule.trained == first


def test_gradient_topk_rows_and_tensors() -> None:
    stream_model = Net()
    sums = {name: torch.zeros_like(p) for name, p in trained(stream_model).items()}
    stream = batches(stream_model, seed=5)
    for _ in range(2):
        next(stream)
        for name, p in trained(stream_model).items():
            sums[name] += p.grad
    by_tensor, by_row = GradientTopK(0.2, batches=2), GradientTopK(0.2, scope="row", batches=2)
    begin(by_tensor)
    begin(by_row)
    for name, total in sums.items():
        count = round(0.2 * total.numel())
        threshold = total.abs().flatten().sort(descending=True).values[max(count - 1, 0)]
        assert int(by_tensor.mask(name).sum()) == count
        if count:
            assert (total.abs()[by_tensor.mask(name) > 0] >= threshold).all()
    mask, total = by_row.mask("blocks.0.up.weight"), sums["blocks.0.up.weight"].abs()
    assert mask.sum(1).tolist() == [1.0] * 10
    assert torch.equal(mask.argmax(1), total.argmax(1))


def test_child_tuning_f_is_unbiased() -> None:
    parameter = nn.Parameter(torch.zeros(20_000))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    ChildTuningF(0.25, seed=0).attach(optimizer, [("w", parameter)])
    parameter.grad = torch.full((20_000,), -1.0)
    optimizer.step()
    assert set(parameter.detach().unique().tolist()) == {0.0, 4.0}
    assert abs(float(parameter.detach().mean()) - 1.0) < 0.05


def test_child_tuning_d_ranks_all_tensors_together() -> None:
    model = Net()
    fisher = {name: torch.zeros_like(p) for name, p in trained(model).items()}
    stream = batches(model, seed=5)
    for _ in range(4):
        next(stream)
        for name, p in trained(model).items():
            fisher[name] += p.grad.square()
    whole = torch.cat([value.flatten() for value in fisher.values()])
    threshold = whole.sort(descending=True).values[round(0.3 * len(whole)) - 1]
    rule = ChildTuningD(0.3, batches=4)
    begin(rule)
    for name, value in fisher.items():
        assert torch.equal(rule.mask(name) > 0, value >= threshold)


def test_mofo_is_adam_on_the_largest_momenta() -> None:
    rule = MoFO(0.2)
    ours, optimizer = begin(rule, decay=0.1)
    theirs = Net()
    m = {name: torch.zeros_like(p) for name, p in trained(theirs).items()}
    v = {name: torch.zeros_like(p) for name, p in trained(theirs).items()}
    stream_ours, stream_theirs = batches(ours, 1), batches(theirs, 1)
    for t in range(1, 8):
        next(stream_ours)
        optimizer.step()
        next(stream_theirs)
        for name, p in trained(theirs).items():
            m[name] = 0.9 * m[name] + 0.1 * p.grad
            v[name] = 0.999 * v[name] + 0.001 * p.grad**2
            step = 1e-2 * (m[name] / (1 - 0.9**t)) / ((v[name] / (1 - 0.999**t)).sqrt() + 1e-8)
            order = m[name].abs().flatten().sort(descending=True).indices[: round(0.2 * p.numel())]
            chosen = torch.zeros(p.numel(), dtype=torch.bool)
            chosen[order] = True
            new = p.detach() * (1 - 1e-2 * 0.1) - step
            p.data.copy_(torch.where(chosen.view_as(p), new, p.detach()))
    for name, p in trained(theirs).items():
        torch.testing.assert_close(trained(ours)[name].detach(), p.detach(), rtol=1e-4, atol=1e-6)
    sgd_parameter = nn.Parameter(torch.ones(3))
    sgd = torch.optim.SGD([sgd_parameter], lr=0.1)
    MoFO().attach(sgd, [("w", sgd_parameter)])
    sgd_parameter.grad = torch.ones(3)
    with pytest.raises(RuleError, match="use AdamW"):
        sgd.step()


@pytest.mark.parametrize("kind", ["l2sp", "ewc"])
def test_loss_form_is_the_gradient_of_the_loss(kind: str) -> None:
    rule = L2SP(0.7) if kind == "l2sp" else EWC(0.7, rows=3)
    ours, optimizer = begin(rule)
    fisher = {name: torch.ones_like(value) for name, value in values(ours).items()}
    if kind == "ewc":
        probe = Net()
        stream = batches(probe, 5)
        fisher = {name: torch.zeros_like(value) for name, value in values(probe).items()}
        for _ in range(3):
            next(stream)
            for name, p in trained(probe).items():
                fisher[name] += p.grad.square() / 3
    theirs, its_optimizer = begin(None)
    theta0 = values(theirs)
    generator = torch.Generator().manual_seed(2)
    for _ in range(5):
        x, y = (torch.randn(8, 6, generator=generator) for _ in range(2))
        moved = [(fisher[name] * (p - theta0[name]) ** 2).sum() for name, p in trained(theirs).items()]
        penalty = 0.35 * torch.stack(moved).sum()
        torch.testing.assert_close(rule.penalty(), penalty.detach().double(), rtol=1e-4, atol=1e-8)
        for model, opt, term in ((ours, optimizer, 0.0), (theirs, its_optimizer, penalty)):
            opt.zero_grad()
            ((model(x) - y).square().mean() + term).backward()
            opt.step()
    for name, value in values(theirs).items():
        torch.testing.assert_close(values(ours)[name], value, rtol=1e-4, atol=1e-6)


def test_fisher_information_of_two_runs_is_summed_with_a_decay() -> None:
    first, second = EWC(rows=3), EWC(rows=3, accumulate=True, decay=0.5)
    begin(first)
    model, optimizer = begin(second, prepare=False)
    assert second.accumulates
    second.earlier = first.buffers
    second.prepare(batches(model, seed=6))
    probe = Net()
    stream = batches(probe, 6)
    expected = {name: 0.5 * fisher for name, fisher in first.buffers["fisher"].items()}
    for _ in range(3):
        next(stream)
        for name, p in trained(probe).items():
            expected[name] = expected[name] + p.grad.square() / 3  # type: ignore[union-attr]
    for name, fisher in second.buffers["fisher"].items():
        torch.testing.assert_close(fisher, expected[name])
    assert not second.earlier, "kept once"
    with pytest.raises(RuleError, match="fisher: generated looks at none"):
        EWC(fisher="generated", rows_from=["gqa"])


@pytest.mark.parametrize("strength", [3.0, 1e6])
def test_decoupled_pull(strength: float) -> None:
    parameter = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    L2SP(strength, form="decoupled").attach(optimizer, [("w", parameter)])
    parameter.grad = torch.tensor([1.0, 1.0])
    optimizer.step()
    left = 1 - min(1.0, 0.1 * strength)  # never beyond θ0
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.0, -2.0]) - 0.1 * left)


def test_sculpt_regulariser_and_pruning() -> None:
    rule = LoRASculpt(0.3, prune_at=2, strength=0.5)
    model, optimizer = begin(rule)
    next(batches(model, 1))
    a, b = model.q.lora_A["default"].weight, model.q.lora_B["default"].weight
    plain = (a.grad.clone(), b.grad.clone())
    weight = conflict(model.q.base_layer.weight.detach())
    size = model.q.base_layer.weight.abs()
    torch.testing.assert_close(weight, torch.tanh((1 / torch.log(size / size.norm())).abs()).detach())
    loss = 0.5 * (weight * (b @ a)).norm()
    torch.testing.assert_close(rule.penalty(), loss.detach())
    expected = torch.autograd.grad(loss, (a, b))
    rule.before_step()
    torch.testing.assert_close(a.grad - plain[0], expected[0])
    torch.testing.assert_close(b.grad - plain[1], expected[1])

    train(model, optimizer, 1)
    assert (a != 0).all()
    train(model, optimizer, 5)
    for factor, name in ((a, "q.lora_A.default.weight"), (b, "q.lora_B.default.weight")):
        assert int((factor != 0).sum()) == round(0.3 * factor.numel()) == int(rule.mask(name).sum())
    with pytest.raises(RuleError, match="frozen ones too"):
        LoRASculpt().attach(optimizer, trained(model).items())
    w = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([w], lr=1)
    with pytest.raises(RuleError, match="use adapter LoRA"):
        LoRASculpt().attach(optimizer, [("w", w)])
