"""The published SPIDER step, tensor by tensor in fp64, written without a look at the implementation."""

from dataclasses import dataclass

import torch
from torch import Tensor

TIE = 1e-5
"""Entries whose two z-scores are closer than this, times 1 + |z|, are left out: fp32 rounding decides them."""


def z_scores(x: Tensor) -> Tensor | None:
    size = x.double().abs()
    if size.numel() < 2 or size.std() <= 1e-6 * size.mean():
        return None
    return (size - size.mean()) / size.std()


@dataclass
class Step:
    weight: Tensor
    mask: Tensor
    tied: Tensor


def spider_step(weight: Tensor, theta0: Tensor, total: Tensor, mask: str = "soft", side: str = "both") -> Step:
    """What a weight becomes after the optimizer's step, given G."""
    z_w, z_g = z_scores(theta0), z_scores(total)
    none = torch.zeros_like(theta0, dtype=torch.float64)
    nothing = Step(theta0.to(weight.dtype), none, none.bool())
    if side == "gradients" and theta0.abs().max() > 0 and z_w is not None:
        z_w = none
    if side == "weights" and z_g is not None:
        z_g = none
    if z_g is None:
        return nothing
    if z_w is None:
        if theta0.abs().max() > 0:
            return nothing
        i_w, i_g = none, torch.sigmoid(z_g)
        tied = none.bool()
    else:
        i_w, i_g = torch.sigmoid(z_w), torch.sigmoid(z_g)
        tied = (z_w - z_g).abs() < TIE * (1 + z_w.abs())
    raw = torch.zeros_like(none)
    flat_w, flat_g, flat = i_w.flatten().tolist(), i_g.flatten().tolist(), raw.view(-1)
    for i in range(raw.numel()):
        if flat_w[i] < flat_g[i]:
            flat[i] = flat_g[i] / (flat_w[i] + flat_g[i])
    chosen = raw[raw != 0]
    if mask == "soft" and len(chosen):
        raw = torch.clamp(raw / chosen.mean(), max=1.0)
    if mask == "hard":
        raw = (raw != 0).double()
    blended = (1 - raw) * theta0.double() + raw * weight.double()
    return Step(blended.to(weight.dtype), raw, tied)
