"""Every objective equals its formula, written out in loops, and has the NLL as its limit."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mllm_lit import objectives
from mllm_lit.answers import token_nll
from mllm_lit.errors import SettingError
from mllm_lit.objectives import (
    ASFT,
    DFT,
    EAFT,
    FLOW,
    NLL,
    STM,
    TALR,
    BeforeTraining,
    KLOnMixed,
    KLToBase,
    Objective,
    kl_to_before,
)
from tests.conftest import REPOSITORY

N, V = 7, 30
CONFIGS = sorted((REPOSITORY / "configs" / "objectives").glob("*.yaml"))


def drawn(k: int = V, temperature: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, BeforeTraining]:
    """Logits of both models, targets, and what is kept of the first: three samples of 2, 4 and 1 tokens."""
    torch.manual_seed(seed)
    first, now = 2 * torch.randn(N, V), (2 * torch.randn(N, V)).requires_grad_()
    targets = torch.randint(V, (N,))
    first[torch.arange(0, N, 2), targets[::2]] += 6  # the first model knows every other token
    log_p = first.log_softmax(1).gather(1, targets[:, None])[:, 0]
    means = torch.cat([-part.mean().expand(len(part)) for part in log_p.split([2, 4, 1])])
    top = (first / temperature).log_softmax(1).topk(k, dim=1)
    mixed = torch.arange(N) >= N - 3
    return first, now, targets, BeforeTraining(log_p, means, top.indices, top.values, mixed)


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(x / temperature) for x in row]
    return [w / sum(weights) for w in weights]


def divergence(first: Tensor, now: Tensor, temperature: float, row: int) -> float:
    p, q = softmax(first[row].tolist(), temperature), softmax(now[row].tolist(), temperature)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def oracle(case: str, first: Tensor, now: Tensor, targets: Tensor, row: int) -> float:
    """The loss of one token."""
    q, p = softmax(now[row].tolist()), softmax(first[row].tolist())
    target = int(targets[row])
    nll = -math.log(q[target])
    if case == "nll":
        return nll
    if case == "dft":
        return q[target] * nll
    if case == "asft":
        return q[target] * nll + 0.1 * divergence(first, now, 1.0, row)
    if case == "kl_to_base":
        return nll + 2.0**2 * divergence(first, now, 2.0, row)
    if case in ("kl_on_rehearsed", "forgetting_budget"):
        strength = {"kl_on_rehearsed": 5.0, "forgetting_budget": 1.0}[case]
        return nll if row < N - 3 else strength * divergence(first, now, 1.0, row)
    if case == "eaft":
        best = sorted(q, reverse=True)[:20]
        shares = [x / sum(best) for x in best]
        return nll * -sum(x * math.log(x) for x in shares) / 3.0
    if case == "stm":
        return nll if 1 / p[target] <= 2.5 else 0.0
    sizes = [2, 4, 1]
    ends = [sum(sizes[: i + 1]) for i in range(3)]
    means = []
    for end, size in zip(ends, sizes, strict=True):
        own = [softmax(first[i].tolist())[int(targets[i])] for i in range(end - size, end)]
        means.append(-sum(math.log(x) for x in own) / size)
    if case == "talr":
        tau = (means[0] + means[1]) / 2  # the median of the target's own two
        return nll * max(q[target] ** (1 / tau), 0.01)
    return nll * math.exp(-means[next(i for i, end in enumerate(ends) if row < end)] / ((means[0] + means[1]) / 2))


def built(path: Path) -> Objective:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    made: Objective = getattr(objectives, content["class_path"].rpartition(".")[2])(**content.get("init_args", {}))
    return made


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_is_its_formula_with_the_published_defaults(path: Path) -> None:
    """In fp32, so to 1e-5 of numbers around 5."""
    objective = built(path)
    first, now, targets, before = drawn(V, objective.temperature)
    objective.prepare(before.log_p[:6], before.sample_nll[[0, 2]], 1)
    found = objective.losses(now, targets, token_nll(now, targets), before)
    expected = [oracle(path.stem, first, now.detach(), targets, row) for row in range(N)]
    assert found.tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize(
    "objective",
    [NLL(), KLToBase(0.0), EAFT(0.0), STM(threshold=1e30), FLOW(tau=1e30), TALR(tau=1e30), TALR(tau=1.0, floor=1.0)],
    ids=lambda one: type(one).__name__,
)
def test_its_limit_is_the_nll_bit_for_bit(objective: Objective) -> None:
    _, now, targets, before = drawn()
    nll = token_nll(now, targets)
    losses = objective.losses(now, targets, nll, before)
    assert torch.equal(losses, nll)
    mine, plain = (torch.autograd.grad(x.sum(), now, retain_graph=True)[0] for x in (losses, nll))
    assert torch.equal(mine, plain)
    assert torch.equal(objective.counted(nll, before), torch.ones(N))


def test_asft_without_a_pull_is_dft() -> None:
    _, now, targets, before = drawn()
    nll = token_nll(now, targets)
    assert torch.equal(ASFT(0.0).losses(now, targets, nll, before), DFT().losses(now, targets, nll, None))


@pytest.mark.parametrize("objective", [DFT(), EAFT(), TALR(tau=2.0)], ids=["dft", "eaft", "talr"])
def test_a_weight_has_no_gradient(objective: Objective) -> None:
    _, now, targets, _ = drawn()
    nll = token_nll(now, targets)
    losses = objective.losses(now, targets, nll, None)
    weights = (losses / nll).detach()
    expected = torch.autograd.grad((weights * nll).sum(), now, retain_graph=True)[0]
    torch.testing.assert_close(torch.autograd.grad(losses.sum(), now)[0], expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, V - 1), st.sampled_from([0.5, 1.0, 2.0]))
def test_the_kept_tokens_never_overstate_the_divergence(seed: int, k: int, temperature: float) -> None:
    """Merging outcomes lowers a divergence; more kept tokens come closer, all of them are exact."""
    first, now, _, _ = drawn(seed=seed)
    whole = [divergence(first, now.detach(), temperature, row) for row in range(N)]

    def by(kept: int) -> list[float]:
        return kl_to_before(now, drawn(kept, temperature, seed)[3], temperature).tolist()

    some, more = by(k), by(k + 1)
    assert by(V) == pytest.approx(whole, rel=1e-4, abs=1e-5)
    for few, next_, all_ in zip(some, more, whole, strict=True):
        assert -1e-5 <= few <= next_ + 1e-5 <= all_ + 2e-5


def test_the_divergence_of_a_model_from_itself_is_zero_and_flat() -> None:
    first, _, _, before = drawn(k=5)
    same = first.clone().requires_grad_()
    apart = kl_to_before(same, before)
    assert apart.abs().max() < 1e-6
    (slope,) = torch.autograd.grad(apart.sum(), same)
    assert slope.abs().max() < 1e-6


def test_masked_tokens_do_not_count() -> None:
    _, now, targets, before = drawn()
    objective, nll = STM(), token_nll(now, targets)
    counted = objective.counted(nll, before)
    assert set(counted.tolist()) <= {0.0, 1.0}
    assert torch.equal(counted > 0, objective.losses(now, targets, nll, before) > 0)


def test_what_means_nothing_is_refused() -> None:
    log_p = torch.full((3,), -2.0)
    with pytest.raises(objectives.ObjectiveError, match="leave out all 3 answer tokens.*Raise objective.threshold"):
        STM().prepare(log_p, -log_p, 0)
    assert "leaves out 1 of 3" in STM().prepare(torch.tensor([-2.0, -0.1, -0.2]), torch.tensor([0.7]), 0)[0]
    with pytest.raises(objectives.ObjectiveError, match="Give data.rehearse or data.replay"):
        KLOnMixed().prepare(log_p, -log_p, 0)
    with pytest.raises(objectives.ObjectiveError, match="Set objective.tau"):
        FLOW().prepare(log_p, torch.zeros(3), 0)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: KLToBase(-1),
        lambda: KLToBase(temperature=0),
        lambda: STM(1.0),
        lambda: EAFT(k=1),
        lambda: FLOW(0),
        lambda: TALR(floor=2),
    ],
)
def test_values_out_of_range_are_refused(wrong: Any) -> None:
    with pytest.raises(SettingError, match=r"objective\.\w+ is"):
        wrong()


@pytest.mark.parametrize("page", ["objectives", "write_an_objective"])
def test_the_pages_run(page: str) -> None:
    text = (REPOSITORY / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    names: dict[str, Any] = {}
    for block in blocks:
        exec(compile(block, f"docs/{page}.md", "exec"), names)
    if page == "objectives":
        assert names["logits"].grad.abs().sum() > 0
        return
    first, now, targets, before = drawn()
    nll = token_nll(now, targets)
    found = names["Gain"](1.0).losses(now, targets, nll, before)
    p, q = (x.detach().softmax(1).gather(1, targets[:, None])[:, 0] for x in (first, now))
    torch.testing.assert_close(found, nll * (p / q).clamp(max=1.0))


def test_the_page_has_a_row_for_every_file() -> None:
    text = (REPOSITORY / "docs" / "objectives.md").read_text(encoding="utf-8")
    for path in CONFIGS:
        assert f"| `{path.stem}` |" in text
