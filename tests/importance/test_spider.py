"""SPIDER against the published rule, its edge cases, its ablations and its state."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from mllm_lit import tensors
from mllm_lit.importance import (
    L2SP,
    HalfFineTuning,
    MoFO,
    Reference,
    Rule,
    RuleError,
    Spider,
    kernels,
    spider,
)
from tests.importance.oracle import TIE, Step, spider_step

SHAPES = {"matrix": (24, 17), "norm": (40,), "bias": (9,), "scalar": (), "conv": (4, 3, 5)}


class Bag(nn.Module):
    """Parameters of many shapes without a computation: a test hands them their gradients."""

    def __init__(self, seed: int = 0, dtype: torch.dtype = torch.float32, bf16_base: bool = True) -> None:
        super().__init__()
        torch.manual_seed(seed)
        for name, shape in SHAPES.items():
            value = torch.randn(shape) * 0.1 + (1.0 if name == "norm" else 0.0)
            value = value.bfloat16().to(dtype) if bf16_base else value.to(dtype)
            setattr(self, name, nn.Parameter(value))


def gradients(model: nn.Module, generator: torch.Generator) -> None:
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def run(model: nn.Module, rule: Spider | None, steps: int, clip: float | None = 1.0, **adamw: float) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, **adamw)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    if rule is not None:
        rule.attach(optimizer, model.named_parameters())
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        gradients(model, generator)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


OPTIONS = {
    "published": {},
    "weights": {"importance": "weights"},
    "gradients": {"importance": "gradients"},
    "hard": {"mask": "hard"},
    "raw": {"mask": "raw"},
    "absolute": {"accumulate": "absolute"},
    "decay": {"decay": 0.9},
    "host": {"reference_on": "host"},
}


@pytest.fixture(params=[spider.KEPT, 0], ids=["mask-kept", "three-passes"])
def passes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Bag's tensors handled as small ones on a CPU, and as large ones there and all of them on a GPU."""
    monkeypatch.setattr(spider, "KEPT", request.param)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_trajectory_equals_the_published_rule(options: dict, dtype: torch.dtype) -> None:
    """60 free-running steps: warm-up, clipping, weight decay; fp32 to 1e-6, bf16 weights to one rounding."""
    steps = 60
    ours, theirs = Bag(dtype=dtype), Bag(dtype=dtype)
    run(ours, Spider(**options), steps, weight_decay=0.1)

    theta0 = {name: p.detach().clone() for name, p in theirs.named_parameters()}
    total = {name: torch.zeros(p.shape) for name, p in theta0.items()}
    tied = {name: torch.zeros(p.shape, dtype=torch.bool) for name, p in theta0.items()}
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-3, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    generator = torch.Generator().manual_seed(7)
    for _ in range(steps):
        gradients(theirs, generator)
        nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        for name, p in theirs.named_parameters():
            assert p.grad is not None
            grad = p.grad.float()
            total[name].mul_(options.get("decay", 1.0)).add_(grad.abs() if "accumulate" in options else grad)
            step = spider_step(
                p.detach(), theta0[name], total[name], options.get("mask", "soft"), options.get("importance", "both")
            )
            tied[name] |= step.tied
            p.data.copy_(step.weight)
        schedule.step()

    moved = 0
    for name, p in ours.named_parameters():
        keep = ~tied[name]
        assert keep.float().mean() > 0.99
        rounding = {"rtol": 2**-7, "atol": 0.0} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-7}
        torch.testing.assert_close(p.detach()[keep], theirs.get_parameter(name).detach()[keep], **rounding)
        moved += int((p.detach() != theta0[name]).sum())
    assert moved > 100


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 300), st.sampled_from([1e-6, 1.0, 1e4]))
def test_mask_properties(seed: int, size: int, scale: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(size, generator=generator) * scale
    order = torch.randperm(size, generator=generator)
    grad = torch.randn(size, generator=generator)

    def mask_of(value: Tensor, gradient: Tensor) -> Tensor:
        parameter, rule = nn.Parameter(value.clone()), Spider()
        optimizer = torch.optim.SGD([parameter], lr=0.1)
        rule.attach(optimizer, [("w", parameter)])
        parameter.grad = gradient
        optimizer.step()
        return rule.mask("w")

    mask = mask_of(weight, grad)
    assert mask.min() >= 0
    assert mask.max() <= 1
    tied = spider_step(weight - 0.1 * grad, weight, grad).tied[order]  # two entries, say, always have the same z-scores
    permuted = mask_of(weight[order], grad[order])
    torch.testing.assert_close(permuted[~tied], mask[order][~tied], rtol=1e-4, atol=1e-5)
    assert torch.equal(mask_of(weight * 8, grad * 4), mask)  # powers of two, so the same to the bit


def test_bookkeeping_of_the_compound_pull() -> None:
    """With M frozen by hand, d_t = M·(d_{t−1} + u_t); an entry with M = 0 is θ0 to the bit."""
    model = Bag()
    theta0 = model.matrix.detach().clone()
    rule = Spider()
    run(model, rule, 5)
    mask = rule.mask("matrix")
    assert torch.equal(model.matrix.detach()[mask == 0], theta0[mask == 0])
    before = model.matrix.detach().clone()
    update = torch.full_like(theta0, 1e-3)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # G and hence M stay
    model.matrix.data.add_(update)
    rule.after_step()
    torch.testing.assert_close(model.matrix.detach() - theta0, mask * (before + update - theta0), rtol=1e-3, atol=1e-7)


def _one_step(weight: Tensor, grad: Tensor | None, **options: str) -> tuple[Tensor, Tensor]:
    parameter = nn.Parameter(weight.clone())
    optimizer = torch.optim.SGD([parameter], lr=0.5)
    rule = Spider(**options)
    rule.attach(optimizer, [("w", parameter)])
    parameter.grad = grad
    optimizer.step()
    return parameter.detach(), rule.mask("w")


EDGES: dict[str, tuple[Tensor, Tensor | None, bool]] = {
    "constant weight": (torch.full((6,), 0.3), torch.randn(6, generator=torch.Generator().manual_seed(0)), False),
    "constant gradient": (torch.arange(6.0), torch.full((6,), -0.7), False),
    "zero gradient": (torch.arange(6.0), torch.zeros(6), False),
    "no gradient": (torch.arange(6.0), None, False),
    "one element": (torch.tensor([0.2]), torch.tensor([1.0]), False),
    "zero-dimensional": (torch.tensor(0.2), torch.tensor(1.0), False),
    "zero weight": (torch.zeros(6), torch.arange(6.0), True),
}


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize(("weight", "grad", "moves"), EDGES.values(), ids=EDGES.keys())
def test_tensors_without_a_rank(weight: Tensor, grad: Tensor | None, moves: bool) -> None:
    after, mask = _one_step(weight, grad)
    if moves:
        assert grad is not None
        torch.testing.assert_close(after, -0.5 * grad * mask)
        assert (mask > 0).all()
    else:
        assert torch.equal(after, weight)
        assert not mask.any()


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("mask", ["soft", "raw", "hard"])
def test_a_gradient_that_is_not_finite_shows(bad: float, mask: str) -> None:
    grad = torch.randn(8)
    grad[3] = bad
    after, _ = _one_step(torch.randn(8), grad, mask=mask)
    assert after.isnan().all()


@pytest.mark.usefixtures("passes")
def test_saturated_ranks() -> None:
    """z-scores above 17 all have rank 1 in fp32; which of the two is larger is still seen."""
    generator = torch.Generator().manual_seed(0)
    weight, grad = (torch.randn(4000, generator=generator) for _ in range(2))
    weight[0], grad[0] = 14.0, 20.0
    weight[1], grad[1] = 20.0, 14.0
    after, mask = _one_step(weight, grad)
    expected = spider_step(weight - 0.5 * grad, weight, grad)
    assert expected.mask[0] > 0
    assert expected.mask[1] == 0
    keep = ~expected.tied
    torch.testing.assert_close(mask.double()[keep], expected.mask[keep], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(after[keep], expected.weight[keep], rtol=1e-5, atol=1e-6)


def test_skipped_step_leaves_everything() -> None:
    """A scaler that meets an overflow does not call optimizer.step, so neither weights nor G change."""
    parameter = nn.Parameter(torch.randn(5))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    rule = Spider().attach(optimizer, [("w", parameter)])
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    before = parameter.detach().clone()
    for grad, steps in ((float("inf"), 0), (1.0, 1)):
        loss = (parameter * torch.tensor([grad, 1, 2, 3, 4])).sum()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert rule.steps == steps
        assert torch.equal(parameter.detach(), before) == (steps == 0)
    torch.testing.assert_close(rule.buffers["gradients"]["w"], torch.tensor([1.0, 1, 2, 3, 4]))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("make", [Spider, L2SP, HalfFineTuning, MoFO, lambda: Spider(gradient="unclipped")])
def test_a_scaler_changes_nothing(make: Callable[[], Rule], fused: bool) -> None:
    """Steps that overflow leave weights and rule alone; the others are those without a scaler.

    A fused optimizer takes scaled gradients, and is called for steps that it skips.
    """

    def train(factors: list[float], scaler: Any = None) -> tuple[dict[str, torch.Tensor], Rule]:
        model, generator = Bag(), torch.Generator().manual_seed(5)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1, fused=fused)
        rule = make()
        by_caller = getattr(rule, "unclipped", False)
        rule.attach(optimizer, model.named_parameters(), before_step="caller" if by_caller else "hook")
        for factor in factors:
            optimizer.zero_grad()
            gradients(model, generator)
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.grad.mul_(factor)
                    if scaler is not None:
                        scaler.scale(parameter.grad)  # which makes the scale, too
                        parameter.grad.mul_(scaler.get_scale())
            if by_caller:
                if scaler is not None:
                    scaler.unscale_(optimizer)
                rule.before_step()
            if scaler is None and factor == float("inf"):
                continue
            if scaler is None:
                optimizer.step()
            else:
                scaler.step(optimizer)
                scaler.update()
        return {name: p.detach() for name, p in model.named_parameters()}, rule

    factors = [1.0, float("inf"), 1.0, 2.0, float("inf"), 1.0]
    plain, one = train(factors)
    scaled, two = train(factors, torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert one.steps == two.steps == 4
    for name, value in plain.items():
        assert torch.isfinite(value).all()
        assert torch.equal(scaled[name], value), name
    for kind, buffers in one.buffers.items():
        for name, value in buffers.items():
            assert torch.equal(two.buffers[kind][name], value), (kind, name)


def test_blend_at_the_end_is_one_blend() -> None:
    free, late = Bag(), Bag()
    theta0 = {name: p.detach().clone() for name, p in free.named_parameters()}
    rule = Spider(blend="end")
    run(free, None, 30)
    run(late, rule, 30)
    for name, p in late.named_parameters():
        assert torch.equal(p, free.get_parameter(name))
    rule.finish()
    for name, p in late.named_parameters():
        step: Step = spider_step(free.get_parameter(name).detach(), theta0[name], rule.buffers["gradients"][name])
        torch.testing.assert_close(p.detach()[~step.tied], step.weight[~step.tied], rtol=1e-6, atol=1e-7)


def test_unclipped_gradients() -> None:
    model = Bag()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(RuleError, match="before_step"):
        Spider(gradient="unclipped").attach(optimizer, model.named_parameters())
    rule = Spider(gradient="unclipped").attach(optimizer, model.named_parameters(), before_step="caller")
    gradients(model, torch.Generator().manual_seed(1))
    whole = model.matrix.grad.clone()
    rule.before_step()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    assert torch.equal(rule.buffers["gradients"]["matrix"], whole)


def test_rounded_accumulator_is_unbiased() -> None:
    rule, exact = Spider(accumulator="bfloat16", seed=3), Spider()
    run(Bag(), exact, 200, clip=None)
    run(Bag(), rule, 200, clip=None)
    ours, theirs = (r.buffers["gradients"]["matrix"] for r in (rule, exact))
    assert ours.dtype == torch.bfloat16
    error = ours.float() - theirs
    # Round-to-nearest loses small gradients altogether once the sum is large; rounding at random must not drift.
    assert error.abs().mean() < 0.05 * theirs.abs().mean()
    assert error.mean().abs() < 4 * error.std() / error.numel() ** 0.5


def _resume(model: Bag, rule: Spider, state: dict) -> Spider:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rule.attach(optimizer, model.named_parameters(), reference=state["theta0"])
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    rule.load_state_dict(state["rule"])
    return rule


@pytest.mark.parametrize("accumulator", ["float32", "bfloat16"])
def test_resume_is_bit_exact(tmp_path: Path, accumulator: str) -> None:
    model = Bag()
    theta0 = Reference.capture(dict(model.named_parameters()))
    rule = Spider(accumulator=accumulator, seed=5)
    run(model, rule, 6)
    torch.save(
        {"model": model.state_dict(), "optimizer": rule.optimizer.state_dict(), "rule": rule.state_dict()},
        tmp_path / "state.pt",
    )
    state = torch.load(tmp_path / "state.pt", weights_only=True) | {"theta0": theta0}
    again = Bag()
    resumed = _resume(again, Spider(accumulator=accumulator, seed=99), state)
    for r, m in ((rule, model), (resumed, again)):
        generator = torch.Generator().manual_seed(11)
        for _ in range(4):
            gradients(m, generator)
            r.optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, again.get_parameter(name))
    assert resumed.steps == rule.steps == 10

    other = Bag(seed=1)
    with pytest.raises(RuleError, match="other weights"):
        _resume(other, Spider(accumulator=accumulator), state | {"theta0": None})


def test_no_more_memory_than_promised() -> None:
    """4 bytes for G and 2 for θ0 of a bf16 base; nothing of θ0 beside a mapped file."""
    model = Bag()
    rule = Spider()
    run(model, rule, 1)
    assert rule.reference is not None
    entries = sum(p.numel() for p in model.parameters())
    held = [t for tensors in rule.buffers.values() for t in tensors.values()] + list(rule.reference.values())
    assert sum(t.nbytes for t in held) == 6 * entries
    assert {t.dtype for t in rule.reference.values()} == {torch.bfloat16}


def test_mapped_reference_gives_the_same_weights(tmp_path: Path) -> None:
    near, mapped = Bag(), Bag()
    run(near, Spider(), 5)
    rule = Spider(reference_on=str(tmp_path / "theta0.safetensors"))
    run(mapped, rule, 5)
    for name, p in near.named_parameters():
        assert torch.equal(p, mapped.get_parameter(name))
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(Bag(), Spider(reference_on=str(tmp_path / "nowhere" / "theta0.safetensors")), 1)


def test_a_mapped_reference_outlives_the_next_run_under_its_name(tmp_path: Path) -> None:
    one, two = ({"w": torch.full((4096,), value)} for value in (1.0, 2.0))
    first, second = (Reference.capture(values, on=str(tmp_path / "theta0.safetensors")) for values in (one, two))
    assert (first["w"] == 1.0).all()
    assert (second["w"] == 2.0).all()
    assert [file.name for file in tmp_path.iterdir()] == ["theta0.safetensors"]


class Operators(TorchDispatchMode):
    """Names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("options", [{}, {"accumulator": "bfloat16"}, {"mask": "hard"}, {"reference_on": "host"}])
def test_a_step_never_waits_for_the_device(options: dict) -> None:
    """No value is read back and no shape depends on one: what on a GPU would stop the host until it is done."""
    model = Bag()
    rule = Spider(**options)
    run(model, rule, 1)
    gradients(model, torch.Generator().manual_seed(0))
    with torch.no_grad(), Operators() as operators:
        rule.after_step()
    assert {"sigmoid_", "lerp"} <= operators.names
    assert not operators.names & {"_local_scalar_dense", "nonzero", "masked_select", "unique", "is_nonzero", "equal"}
    with Operators() as operators:
        float(model.matrix.detach().sum())
    assert "_local_scalar_dense" in operators.names  # what is looked for would be seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_large_tensors_get_the_weights_of_small_ones(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that is kept between two passes, whole or in several chunks, is the one that is computed twice."""
    monkeypatch.setitem(tensors.CHUNK, "cpu", 64)
    kept, twice = Bag(dtype=dtype), Bag(dtype=dtype)
    rule, other = Spider(), Spider()
    run(kept, rule, 5)
    monkeypatch.setattr(spider, "KEPT", 0)
    run(twice, other, 5)
    for name, p in kept.named_parameters():
        assert torch.equal(p, twice.get_parameter(name)), name
        assert torch.equal(rule.mask(name), other.mask(name)), name


@pytest.mark.usefixtures("passes")
def test_tensors_that_are_not_contiguous() -> None:
    """Transposed or channels-last ones come in chunks of rows, others flat; the weights are the same."""
    flat, strided = Bag(), Bag()
    strided.matrix = nn.Parameter(strided.matrix.detach().t().contiguous().t())
    strided.conv = nn.Parameter(strided.conv.detach().permute(0, 2, 1).contiguous().permute(0, 2, 1))
    assert not strided.matrix.is_contiguous()
    assert not strided.conv.is_contiguous()
    rule, other = Spider(), Spider()
    run(flat, rule, 5)
    run(strided, other, 5)
    for name, p in flat.named_parameters():
        torch.testing.assert_close(strided.get_parameter(name), p, rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(other.mask(name), rule.mask(name), rtol=1e-5, atol=1e-6)


def test_compiled_passes_equal_the_eager_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pass is one graph without a break, and one for single entries; no code is generated, for speed."""
    graphs = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=graphs, fullgraph=True))
    eager, compiled = Bag(), Bag()
    run(eager, Spider(), 4)
    run(compiled, Spider(compile=True), 4)
    for name, p in eager.named_parameters():
        torch.testing.assert_close(compiled.get_parameter(name), p, rtol=1e-6, atol=1e-7)
    computing = [graph for graph in graphs.graphs if len(graph.graph.nodes) > 0]
    assert len(computing) == 1 + 3 * 2  # the trial of the compiler; three passes


def test_refuses_to_compile_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*args: object, **options: object) -> None:
        raise RuntimeError("Cannot find a working triton installation.")

    monkeypatch.setattr(torch, "compile", missing)
    run(Bag(), Spider(), 1)  # on a CPU nothing is compiled unless asked for
    with pytest.raises(
        RuleError, match=r"(?s)torch.compile failed there: Cannot find a working triton.*compile to false"
    ):
        run(Bag(), Spider(compile=True), 1)


def test_statistics() -> None:
    model = Bag()
    theta0 = {name: p.detach().clone() for name, p in model.named_parameters()}
    rule = Spider()
    run(model, rule, 3)
    first = rule.statistics()["matrix"]
    mask = rule.mask("matrix")
    assert "overlap" not in first
    torch.testing.assert_close(first["selected"], (mask > 0).double().mean())
    torch.testing.assert_close(first["mask"], mask.double().mean())
    distance = (model.matrix.detach().double() - theta0["matrix"].double()).norm()
    torch.testing.assert_close(first["distance"], distance)
    gradients(model, torch.Generator().manual_seed(3))
    rule.optimizer.step()
    now = rule.mask("matrix") > 0
    expected = ((mask > 0) & now).sum() / ((mask > 0) | now).sum()
    torch.testing.assert_close(rule.statistics()["matrix"]["overlap"], expected.double())


REFUSALS: dict[str, tuple[Callable[[], object], str]] = {
    "nothing trains": (
        lambda: Spider().attach(torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1), []),
        "No tensor trains",
    ),
    "not in the optimizer": (
        lambda: Spider().attach(
            torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1), [("w", nn.Parameter(torch.ones(2)))]
        ),
        "not in the optimizer",
    ),
}


@pytest.mark.parametrize(("attempt", "message"), REFUSALS.values(), ids=REFUSALS.keys())
def test_refusals(attempt: Callable[[], object], message: str) -> None:
    with pytest.raises(RuleError, match=message):
        attempt()


@pytest.mark.parametrize("kind", ["normal", "heavy tails", "mostly zero", "large mean"])
def test_moments_of_many_entries(kind: str) -> None:
    """Mean and deviation are good to 1e-6, whatever the distribution: a rank is no better than they are."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(1 << 18, generator=generator)
    if kind == "heavy tails":
        values = values**5
    if kind == "mostly zero":
        values *= torch.rand(1 << 18, generator=generator) < 0.01
    if kind == "large mean":
        values = 1 + 1e-2 * values
    values = values.bfloat16().float()  # few distinct values, whose rounding errors do not cancel
    size = values.double().abs()
    counts = torch.tensor([float(len(values))], dtype=torch.float64)
    mean, inverse = kernels.scales(kernels.moments(values).unsqueeze(0), counts, kernels.LOWEST, kernels.LOWEST)[0]
    assert float(mean) == pytest.approx(float(size.mean()), rel=1e-6)
    assert 1 / float(inverse) == pytest.approx(float(size.std()), rel=1e-6)


def test_refuses_foreign_state_and_references() -> None:
    model = Bag()
    rule = Spider()
    run(model, rule, 1)
    with pytest.raises(RuleError, match="attached already"):
        rule.attach(rule.optimizer, model.named_parameters())
    with pytest.raises(RuleError, match="resume with the rule"):
        rule.load_state_dict(rule.state_dict() | {"rule": "MagnitudeMask"})
    with pytest.raises(KeyError, match="no tensor 'matrix'"):
        Spider().attach(rule.optimizer, model.named_parameters(), reference={})
    wrong = {name: torch.zeros(3, 3) for name, _ in model.named_parameters()}
    with pytest.raises(ValueError, match="another model"):
        Spider().attach(rule.optimizer, model.named_parameters(), reference=wrong)


def test_tie_width_is_the_fp32_rounding() -> None:
    """The tolerance that tests leave out is wider than what fp32 loses, and not by much more than needed."""
    weight = torch.randn(2000) * 0.02
    exact = (weight.double().abs() - weight.double().abs().mean()) / weight.double().abs().std()
    sums = kernels.moments(weight).unsqueeze(0)
    scale = kernels.scales(sums, torch.tensor([2000.0], dtype=torch.float64), kernels.LOWEST, kernels.HIGHEST)[0]
    ours = (weight.abs() - scale[0]) * scale[1]
    assert (ours.double() - exact).abs().max() < TIE


def test_theta0_captured_before_the_model_moved_follows_it() -> None:
    """A resumed run captures θ0 on the CPU, before Lightning moves the model to its device ("meta" stands for one)."""
    model = nn.Linear(3, 2)
    theta0 = Reference.capture(dict(model.named_parameters()))
    identity = theta0.identity
    there = dict(nn.Linear(3, 2, device="meta").named_parameters())
    assert theta0.beside(there, "host")["weight"].device.type == "cpu"
    assert theta0.beside(there, "device")["weight"].device.type == "meta"
    assert theta0.identity == identity
