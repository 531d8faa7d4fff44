"""Attention in bf16 on a CPU: what it is computed in, and that it errs no more than torch's own."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm_lit.answers import answer_nll
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.attention import SHORT, sdpa_attention
from mllm_lit.data.collate import Collate
from mllm_lit.tasks import ScienceQA, embedded_root


def layer() -> nn.Module:
    module = nn.Module()
    module.is_causal = True
    return module


def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """What torch's function computes in."""
    dtypes: list[torch.dtype] = []

    def told(query: Tensor, *others: Any, **options: Any) -> Tensor:
        dtypes.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype)
        return scaled_dot_product_attention(query, *others, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", told)
    return dtypes


@pytest.mark.parametrize("mask", [None, "boolean", "added"])
def test_short_rows_are_trained_in_fp32_and_err_less(mask: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    length = 40
    heads = [torch.randn(2, 4, length, 16, dtype=torch.bfloat16) for _ in range(3)]
    ahead = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    masks = {None: None, "boolean": ahead, "added": torch.zeros(ahead.shape).masked_fill(~ahead, float("-inf"))}

    def run(attend: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [head.to(dtype).requires_grad_() for head in heads]
        chosen = masks[mask]
        if chosen is not None and chosen.is_floating_point():
            chosen = chosen.to(dtype)
        mixed, _ = attend(layer(), *leaves, chosen)
        assert mixed.dtype == dtype
        mixed.float().square().sum().backward()
        return [mixed.detach().float(), *(leaf.grad.float() for leaf in leaves)]

    exact = run(sdpa_attention_forward, torch.float32)
    dtypes = seen(monkeypatch)
    ours, torchs = run(sdpa_attention, torch.bfloat16), run(sdpa_attention_forward, torch.bfloat16)
    assert dtypes == [torch.float32, torch.bfloat16]
    for one, other, wanted in zip(ours, torchs, exact, strict=True):
        assert (one - wanted).norm() <= 1.01 * (other - wanted).norm()


@pytest.mark.parametrize("length", [SHORT, SHORT + 1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_the_rest_is_left_to_torch(
    length: int, training: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    heads = [torch.randn(1, 1, length, 8, dtype=dtype) for _ in range(3)]
    dtypes = seen(monkeypatch)
    with torch.set_grad_enabled(training):
        mixed, _ = sdpa_attention(layer(), *heads, None)
    changed = training and length == SHORT and dtype == torch.bfloat16
    assert dtypes == [torch.float32 if changed else dtype]
    torch.testing.assert_close(mixed, sdpa_attention_forward(layer(), *heads, None)[0], rtol=0.02, atol=0.02)


def test_a_backbone_attends_by_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """And its loss under autocast comes as near to fp32's as with torch's own."""
    loaded = Backbone().load()
    rows = ScienceQA().rows(embedded_root("scienceqa"), "train")[:4]
    collate = Collate(loaded.processor)
    batch = collate(rows)

    def loss() -> float:
        nll, counts = answer_nll(loaded.model, batch)
        return float(nll.detach().sum() / counts.sum())

    exact, dtypes = loss(), seen(monkeypatch)
    with torch.autocast("cpu", torch.bfloat16):
        ours = loss()
        assert set(dtypes) == {torch.float32}
        monkeypatch.setitem(AttentionInterface._global_mapping, "sdpa", sdpa_attention_forward)
        dtypes.clear()
        torchs = loss()
    assert set(dtypes) == {torch.bfloat16}
    assert ours == pytest.approx(exact, abs=2e-2)  # bf16 has 8 bits: 0.4 % a product
    assert torchs == pytest.approx(exact, abs=2e-2)
