"""SPIDER's arithmetic on one chunk: plain elementwise chains and sums, run eagerly or handed to ``torch.compile``.

A rank is ``ρ(x) = σ((|x| − mean|x|) / std|x|)``. Its mean and inverse deviation travel as a tensor of two fp32 numbers,
so nothing here waits for the device. Tensors without a rank are expressed through the same two numbers.

``work`` is memory to compute in, four fp32 tensors of the chunk's shape. An eager chain of operations then asks the
allocator for nothing, which on a CPU may cost more than the arithmetic; a compiled one has no use for it.
"""

import torch
from torch import Tensor

LOWEST_Z = -80.0  # σ(−80) is still a normal fp32 number, so a quotient of two ranks is never 0/0
FLAT = 1e-6  # a deviation below this share of the mean is rounding noise: the tensor is constant

NEUTRAL = 0.0  # for both numbers: every entry has rank 1/2
LOWEST = (float("inf"), 1.0)  # every entry has rank 0
HIGHEST = (float("-inf"), 1.0)  # every entry has rank 1


Work = tuple[Tensor, Tensor, Tensor, Tensor]


def magnitude(values: Tensor, out: Tensor | None) -> Tensor:
    """|x| in fp32."""
    if out is None:
        return values.abs().to(torch.float32)
    return torch.abs(values, out=out) if values.dtype == torch.float32 else out.copy_(values).abs_()


def moments(values: Tensor, work: Work | None = None) -> Tensor:
    """Σ|x| and Σx² as fp64 (2,), by way of the centred sum, so that a large mean does not drown a small deviation."""
    size = magnitude(values, work and work[0])
    mean = size.mean()
    # `sum` adds in a tree; `vector_norm` adds in long rows, which loses up to 1e-4 of it.
    spread = size.sub_(mean).square_().sum().double()
    mean = mean.double()
    return torch.stack((values.numel() * mean, spread + values.numel() * mean * mean))


def scales(sums: Tensor, counts: Tensor, zero: tuple[float, float], flat: tuple[float, float]) -> Tensor:
    """Mean and inverse unbiased deviation of P tensors.

    Args:
        sums: Σ|x| and Σx² of each, fp64 (P, 2).
        counts: Entries of each, fp64 (P,).
        zero: What an all-zero tensor gets instead.
        flat: What a constant or one-element tensor gets instead, having no z-score.

    Returns:
        fp32 (P, 2); NaN where a tensor holds NaN or infinity.
    """
    mean = sums[:, 0] / counts
    deviation = ((sums[:, 1] - sums[:, 0] * mean) / (counts - 1).clamp_min(1)).clamp_min(0).sqrt()
    inverse = 1 / deviation
    for special, (its_mean, its_inverse) in (
        ((deviation <= FLAT * mean) | (counts == 1), flat),
        (sums[:, 1] == 0, zero),
        (~torch.isfinite(sums).all(dim=1), (torch.nan, torch.nan)),
    ):
        mean, inverse = torch.where(special, its_mean, mean), torch.where(special, its_inverse, inverse)
    return torch.stack((mean, inverse), dim=1).float()


def accumulate(total: Tensor, gradient: Tensor, decay: float, absolute: bool, work: Work | None = None) -> Tensor:
    """``total ← decay·total + gradient`` in place, and the moments of the result."""
    if decay != 1.0:
        total.mul_(decay)
    total.add_(gradient.abs() if absolute else gradient)
    return moments(total, work)


def accumulate_rounded(total: Tensor, gradient: Tensor, decay: float, absolute: bool, noise: Tensor) -> Tensor:
    """The same for a bf16 ``total``, rounded up or down at random in proportion, so that its expectation is exact.

    Args:
        noise: int32 in [0, 65536), of the chunk's shape.
    """
    exact = total.to(torch.float32).mul_(decay).add_(gradient.abs() if absolute else gradient)
    bits = exact.view(torch.int32)
    rounded = ((bits + noise) & -65536).view(torch.float32)
    total.copy_(torch.where(torch.isfinite(exact), rounded, exact))
    return moments(total)


def raw_mask(reference: Tensor, total: Tensor, weights: Tensor, gradients: Tensor, work: Work | None = None) -> Tensor:
    """``I_g / (I_w + I_g)`` where ``I_w < I_g``, else 0; fp32.

    The ranks are compared before the sigmoid, which in fp32 cannot tell large z-scores apart. The comparison is written
    as 0 and 1 in fp32, since bool tensors cost a CPU five times as much.
    """
    return raw_mask_and_selected(reference, total, weights, gradients, work)[0]


def raw_mask_and_selected(
    reference: Tensor, total: Tensor, weights: Tensor, gradients: Tensor, work: Work | None
) -> tuple[Tensor, Tensor]:
    """The raw mask, and 1 where it is not 0."""
    w = magnitude(reference, work and work[0]).sub_(weights[0]).mul_(weights[1])
    g = magnitude(total, work and work[1]).sub_(gradients[0]).mul_(gradients[1])
    selected = torch.gt(g, w).to(torch.float32) if work is None else torch.gt(g, w, out=work[2])
    w.sigmoid_()
    g.clamp_min_(LOWEST_Z).sigmoid_()
    return g.div_(w.add_(g)).mul_(selected), selected


def mask_sums(reference: Tensor, total: Tensor, weights: Tensor, gradients: Tensor, work: Work | None = None) -> Tensor:
    """Sum and number of the non-zero entries of the raw mask, fp64 (2,)."""
    mask, selected = raw_mask_and_selected(reference, total, weights, gradients, work)
    return torch.stack((mask.sum().double(), selected.sum().double()))


def final_mask(
    reference: Tensor,
    total: Tensor,
    weights: Tensor,
    gradients: Tensor,
    factor: Tensor,
    hard: bool,
    work: Work | None = None,
) -> Tensor:
    """``min(1, factor·m)``, or with ``hard`` 1 wherever ``m`` is not 0."""
    mask = raw_mask(reference, total, weights, gradients, work)
    return mask.ceil_() if hard else mask.mul_(factor).clamp_max_(1.0)


def blend(
    weight: Tensor,
    reference: Tensor,
    total: Tensor,
    weights: Tensor,
    gradients: Tensor,
    factor: Tensor,
    hard: bool,
    work: Work | None = None,
) -> None:
    """``θ ← (1 − M)·θ0 + M·θ`` in place; exact at M = 0 and M = 1."""
    before = reference.to(torch.float32) if work is None else work[3].copy_(reference)
    apply_mask(weight, before, final_mask(before, total, weights, gradients, factor, hard, work))


def apply_mask(weight: Tensor, reference: Tensor, mask: Tensor) -> None:
    """The same with a mask that is known, of an fp32 θ0."""
    if weight.dtype == torch.float32:
        torch.lerp(reference, weight, mask, out=weight)
    else:
        weight.copy_(torch.lerp(reference, weight.to(torch.float32), mask))
