"""Model-Dowser against brute force, and its probes and EWC's on a real language model."""

from contextlib import nullcontext
from functools import partial

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mllm_lit.importance import EWC, ModelDowser, RuleError
from mllm_lit.importance.probing import self_generated


@pytest.fixture
def llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=24,
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
    )
    model = LlamaForCausalLM(config).requires_grad_(False)
    model.model.layers[1].requires_grad_(True)
    return model


def _attach(rule: ModelDowser | EWC, model: LlamaForCausalLM) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.0)
    rule.attach(optimizer, model.named_parameters())
    return optimizer


def test_score_is_the_jacobian_norm_times_weight_times_input(llama: LlamaForCausalLM) -> None:
    """Many sign vectors approach the exact Jacobian, computed here output by output."""
    rule = ModelDowser(probes=1000, seed=0)
    _attach(rule, llama)
    texts = [torch.tensor([[1, 5, 7], [1, 9, 3]]), torch.tensor([[1, 4, 4]])]
    scores = rule.scores(llama, texts)
    name = "model.layers.1.mlp.up_proj.weight"
    layer = llama.get_submodule(name.removesuffix(".weight"))
    exact = torch.zeros(12, 8)
    for text in (t for batch in texts for t in batch.split(1)):
        held: dict[str, torch.Tensor] = {}
        handle = layer.register_forward_hook(lambda _, args, out, held=held: held.update(h=args[0], z=out))
        logits = llama(input_ids=text, use_cache=False).logits.flatten()
        handle.remove()
        squared = torch.zeros(12)
        for value in logits:
            (row,) = torch.autograd.grad(value, held["z"], retain_graph=True)
            squared += row[0].square().sum(0)
        exact += torch.outer(squared.sqrt(), held["h"][0].square().mean(0).sqrt())
    expected = exact * llama.get_parameter(name).detach().abs()
    torch.testing.assert_close(scores[name], expected, rtol=0.1, atol=0)
    assert set(scores) == {n for n, p in llama.named_parameters() if p.requires_grad and p.ndim == 2}
    assert all(p.grad is None for p in llama.parameters())


def test_trains_the_lowest_share_of_each_matrix(llama: LlamaForCausalLM) -> None:
    rule = ModelDowser(0.1, prompts=6, probes=2, length=10, batch=4, seed=0)
    optimizer = _attach(rule, llama)
    before = {name: p.detach().clone() for name, p in llama.named_parameters()}
    batches: list[int] = []

    def progress(texts, total):
        assert total == 2
        for text in texts:
            batches.append(len(text))
            yield text

    rule.progress = progress
    rule.prepare(model=llama)
    assert batches == [4, 2]
    scores = rule.scores(llama, self_generated(llama, 6, 4, 10, seed=0))
    for _ in range(3):
        tokens = torch.randint(3, 24, (2, 8))
        llama(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, p in llama.named_parameters():
        moved = p.detach() != before[name]
        if not p.requires_grad or p.ndim == 1:
            assert not moved.any()
            continue
        mask = rule.mask(name) > 0
        assert int(mask.sum()) == p.numel() - round(0.9 * p.numel())
        assert scores[name][mask].max() <= scores[name][~mask].min() * (1 + 1e-4)
        assert not (moved & ~mask).any()
        assert moved.any()


def test_self_generated_text(llama: LlamaForCausalLM) -> None:
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    llama.train()
    texts = list(self_generated(llama, 5, batch_size=2, length=12, seed=7))
    assert [tuple(text.shape) for text in texts] == [(2, 12), (2, 12), (1, 12)]
    whole = torch.cat(texts)
    assert (whole[:, 0] == 1).all()
    assert not torch.isin(whole[:, 1:], torch.tensor([1, 2])).any()
    assert torch.equal(torch.random.get_rng_state(), state)
    assert llama.training
    assert torch.equal(whole, torch.cat(list(self_generated(llama, 5, batch_size=2, length=12, seed=7))))


def test_ewc_from_generated_text(llama: LlamaForCausalLM) -> None:
    rule = EWC(rows=3, fisher="generated", seed=1)
    assert rule.needs_data == "model"
    _attach(rule, llama)
    with pytest.raises(RuleError, match="prepare"):
        rule.prepare()
    rule.prepare(model=llama)
    name = "model.layers.1.mlp.up_proj.weight"
    expected = torch.zeros(12, 8)
    for tokens in self_generated(llama, 3, 1, seed=1):
        llama.zero_grad()
        llama(input_ids=tokens, labels=tokens).loss.backward()
        expected += llama.get_parameter(name).grad.square() / 3
    torch.testing.assert_close(rule.weight(name), expected)
    assert expected.max() > 0


@pytest.mark.parametrize("rule", [ModelDowser(prompts=2, probes=2, length=8, seed=0), EWC(rows=2, fisher="generated")])
def test_a_part_in_eval_mode_stays_in_it(llama: LlamaForCausalLM, rule: ModelDowser | EWC) -> None:
    """A frozen vision encoder is in eval mode while the rest trains."""
    llama.train()
    llama.model.layers[0].eval()
    modes = {name: module.training for name, module in llama.named_modules()}
    _attach(rule, llama)
    rule.prepare(model=llama)
    assert {name: module.training for name, module in llama.named_modules()} == modes


def test_modes_come_back_after_an_error(llama: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    llama.train()
    monkeypatch.setattr(llama, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(self_generated(llama, 1))
    assert all(module.training for module in llama.modules())


@pytest.mark.parametrize("outer", [False, True])
@pytest.mark.parametrize("rule", ["dowser", "ewc"])
def test_a_base_in_bf16_is_probed_under_autocast(llama: LlamaForCausalLM, rule: str, outer: bool) -> None:
    """What trains is in fp32 beside it; the loop says how to go forward, or stands in autocast itself."""
    made = {
        "dowser": lambda: ModelDowser(prompts=2, probes=2, length=8, seed=0, trained=0.5),
        "ewc": lambda: EWC(rows=2, fisher="generated", seed=0),
    }

    def figures(found: ModelDowser | EWC) -> dict[str, torch.Tensor]:
        return {
            name: found.weight(name) if isinstance(found, EWC) else found.trained(name).float()
            for name, parameter in llama.named_parameters()
            if parameter.requires_grad and parameter.ndim == 2
        }

    whole = made[rule]()
    _attach(whole, llama)
    whole.prepare(model=llama)
    for parameter in llama.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    mixed = made[rule]()
    _attach(mixed, llama)
    autocast = partial(torch.autocast, "cpu", torch.bfloat16)
    if not outer:
        mixed.forward_context = autocast
    with autocast() if outer else nullcontext():
        mixed.prepare(model=llama)
    for name, expected in figures(whole).items():
        found = figures(mixed)[name]
        assert found.max() > 0
        assert torch.corrcoef(torch.stack((found.flatten(), expected.flatten())))[0, 1] > 0.9, name


def test_refusals(llama: LlamaForCausalLM) -> None:
    rule = ModelDowser()
    _attach(rule, llama)
    with pytest.raises(RuleError, match=r"prepare\(model="):
        rule.prepare()
    llama.requires_grad_(False)
    llama.model.norm.requires_grad_(True)
    rule = ModelDowser(prompts=1, probes=1, length=8)
    _attach(rule, llama)
    with pytest.raises(RuleError, match="open blocks"):
        rule.prepare(model=llama)
    with pytest.raises(ValueError, match="probes is 0"):
        ModelDowser(probes=0)
    assert isinstance(llama, nn.Module)
