"""Attention in bf16 on a CPU: short sequences are trained in fp32, where torch has the faster backward pass."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

SHORT = 256
"""Keys up to which torch's kernel takes up to five times as long backward in bf16 as in fp32, casts included
(``benchmarks/step_costs.py``); over longer sequences bf16 is the faster one."""


def sdpa_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As transformers' ``sdpa``; in training in bf16 on a CPU, up to :data:`SHORT` keys, computed in fp32.

    Args:
        module: The attention layer.
        query: (rows, heads, tokens, width).
        key: (rows, key heads, keys, width).
        value: As ``key``.
        attention_mask: Boolean or added to the scores, or ``None``.
        options: Of transformers' function.
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else query.dtype
    short = query.device.type == "cpu" and key.shape[-2] <= SHORT
    if not short or dtype != torch.bfloat16 or not torch.is_grad_enabled():
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    if attention_mask is not None and attention_mask.is_floating_point():
        attention_mask = attention_mask.float()
    with torch.autocast("cpu", enabled=False):
        mixed, _ = sdpa_attention_forward(module, query.float(), key.float(), value.float(), attention_mask, **options)
    return mixed.to(dtype), None


def use_for_sdpa() -> None:
    """Have every model of transformers whose attention is ``sdpa`` compute it by :func:`sdpa_attention`."""
    AttentionInterface.register("sdpa", sdpa_attention)
