"""SPIDER on a real model's training: each of 200 steps equals the published rule, entry for entry."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from mllm_lit.importance import Spider
from tests.importance.oracle import TIE

pytestmark = pytest.mark.slow

STEPS, ACCUMULATION = 200, 4


class Case(NamedTuple):
    """What is trained: a model, its loss on the next batch, a learning rate, and every how many steps to compare."""

    model: nn.Module
    loss: Callable[[torch.Generator], Any]
    rate: float
    turns: int


def _llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
    )
    model = LlamaForCausalLM(config).to(torch.bfloat16).to(torch.float32)  # a base that was saved in bf16
    model.requires_grad_(False)
    model.model.layers.requires_grad_(True)
    model.lm_head.requires_grad_(True)
    return model


def _blended(weight: torch.Tensor, theta0: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One published step in fp64, and which entries rounding decides."""
    z_w, z_g = ((x.abs() - x.abs().mean()) / x.abs().std() for x in (theta0.double(), total.double()))
    i_w, i_g = z_w.sigmoid(), z_g.sigmoid()
    raw = torch.where(i_w < i_g, i_g / (i_w + i_g), 0.0)
    mask = (raw / raw[raw > 0].mean()).clamp(max=1.0) if (raw > 0).any() else raw
    return (1 - mask) * theta0.double() + mask * weight.double(), (z_w - z_g).abs() < TIE * (1 + z_w.abs())


def _embedded() -> Case:
    """The package's own model, of which the last block and the connector train, and losses on rows of its VQA set."""
    from mllm_lit.adapters import Full
    from mllm_lit.backbones import Backbone
    from mllm_lit.data.collate import Collate
    from mllm_lit.tasks import VQAv2, embedded_root

    loaded = Backbone("embedded").load()
    model = Full(blocks=1, connector="tuned").attach(loaded)
    rows = VQAv2().rows(embedded_root("vqav2"), "train2014")[:6]
    batches = [Collate(loaded.processor)([row]) for row in rows]
    with torch.no_grad():  # the frozen vision tower is the same in every step
        features = [loaded.model.model.vision_tower(batch.inputs["pixel_values"]) for batch in batches]
    tower = loaded.model.model.vision_tower
    now: dict[str, Any] = {}
    tower.forward = lambda *_, **__: now["features"]

    def loss(generator: torch.Generator) -> Any:
        i = int(torch.randint(len(batches), (), generator=generator))
        now["features"] = features[i]
        return model(**batches[i].inputs, labels=batches[i].labels).loss

    return Case(model, loss, 1e-3, 16)


def _small() -> Case:
    model = _llama()

    def loss(generator: torch.Generator) -> Any:
        start = torch.randint(0, 32, (4, 1), generator=generator)
        tokens = (start + torch.arange(8) * 5) % 32
        return model(input_ids=tokens, labels=tokens).loss

    return Case(model, loss, 2e-2, 1)


@pytest.mark.parametrize("make", [_small, _embedded])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16], ids=["fp32", "bf16-mixed"])
def test_every_step_of_a_training_run(make: Callable[[], Case], precision: torch.dtype) -> None:
    """Clipping, accumulation, weight decay and warm-up; to 2e-6 of the larger of the two weights that are blended."""
    model, loss_of, rate, turns = make()
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    theta0 = {name: p.detach().clone() for name, p in trained.items()}
    total = {name: torch.zeros_like(p) for name, p in theta0.items()}
    optimizer = torch.optim.AdamW(trained.values(), lr=rate, weight_decay=0.05)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=20)
    unblended: dict[str, torch.Tensor] = {}
    # Hooks run in the order in which they are registered, so this one sees the optimizer's own result.
    optimizer.register_step_post_hook(lambda *_: unblended.update({n: p.detach().clone() for n, p in trained.items()}))
    Spider().attach(optimizer, model.named_parameters())

    generator = torch.Generator().manual_seed(1)
    tied, moved, losses = 0, 0.0, []
    for step in range(STEPS):
        for _ in range(ACCUMULATION):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
                loss = loss_of(generator) / ACCUMULATION
            loss.backward()
        losses.append(loss.item())
        nn.utils.clip_grad_norm_(trained.values(), 0.5)
        for name, p in trained.items():
            assert p.grad is not None
            total[name] += p.grad
        optimizer.step()
        warm_up.step()
        optimizer.zero_grad()
        for i, (name, p) in enumerate(trained.items()):
            if (i + step) % turns and step < STEPS - 1:
                continue  # of a larger model, a sixteenth of the tensors in each step, and all after the last
            if theta0[name].unique().numel() == 1:  # the norms of a fresh model: no rank, so no update
                assert torch.equal(p.detach(), theta0[name])
                continue
            expected, near = _blended(unblended[name], theta0[name], total[name])
            # The blend may cancel θ0 and the new weight almost fully: rounding is that of the terms, not of their sum.
            allowed = 2e-6 * torch.maximum(theta0[name].abs(), unblended[name].abs()) + 1e-8
            # A tie that rounding decides the other way also shifts the mean of the mask, by less than 1 in its entries.
            allowed += (unblended[name] - theta0[name]).abs() * near.sum() / (0.4 * p.numel())
            excess = ((p.detach() - expected).abs() - allowed)[~near].max()
            assert excess <= 0, f"{name}: {excess} beyond the tolerance"
            tied += int(near.sum())
            moved = max(moved, float((p.detach() - theta0[name]).abs().max()))
    entries = sum(p.numel() for p in trained.values())
    assert tied < 1e-3 * STEPS * entries
    assert moved > 1e-2
    assert sum(losses[-20:]) < 0.98 * sum(losses[:20]), "the pull back to θ0 slows learning, but does not stop it"
