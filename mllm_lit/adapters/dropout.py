"""Dropout whose masks cost a CPU about half of torch's."""

import math
from typing import Any

import torch
from torch import Tensor, nn


def dropped_positions(count: int, p: float) -> Tensor:
    """Which of ``count`` elements are dropped, each independently with probability ``p``; ascending, int64.

    From one to the next it is a geometric number of elements, so only what is dropped costs random numbers: 32 bits
    each, of torch's default generator.
    """
    positions = torch.full((1,), -1)
    while positions[-1] < count:
        draws = math.ceil(count * p + 8 * math.sqrt(count * p)) + 8  # not enough once in 10¹⁵ times
        words = torch.empty(draws // 2 + 1, dtype=torch.int64).random_(-(2**63), None).view(torch.int32)
        uniform = words.to(torch.float64).add_(2**31 + 0.5).mul_(2.0**-32)
        gaps = uniform.log_().mul_(1 / math.log1p(-p)).to(torch.int64).add_(1)
        positions = torch.cat((positions, gaps.cumsum(0).add_(positions[-1])))
    return positions[1 : torch.searchsorted(positions, count)]


def kept(input: Tensor, p: float) -> Tensor:
    """One where an element of a tensor is kept and zero where it is dropped."""
    mask = torch.ones(input.shape, dtype=input.dtype)
    mask.view(-1)[dropped_positions(mask.numel(), p)] = 0
    return mask


# A compiled graph calls it as one piece, in an order of its own. The tag keeps two calls from being taken for one, and
# has recomputation restore the generator's state, of the device the input is on.
compiled_kept = torch.library.custom_op(
    "mllm_lit::kept", kept, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
compiled_kept.register_fake(lambda input, p: torch.empty(input.shape, dtype=input.dtype))


class _Drop(torch.autograd.Function):
    """Scaled, and zero at some positions; keeps the positions only."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, positions: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(positions)
        ctx.scale = scale
        return _scaled_without(input, positions, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (positions,) = ctx.saved_tensors
        return _scaled_without(grads[0], positions, ctx.scale), None, None


def _scaled_without(input: Tensor, positions: Tensor, scale: float) -> Tensor:
    out = input.contiguous() * scale
    out.view(-1)[positions] = 0
    return out


class GeometricDropout(nn.Dropout):
    """Dropout that draws the distances between dropped elements on a CPU; elsewhere, or for ``p`` > 0.5, torch's.

    Elements are dropped independently with probability ``p`` (to 2⁻³²), as torch's are, from its default generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with elements set to zero and the others scaled, in training."""
        if not self.training or input.device.type != "cpu" or not 0 < self.p <= 0.5 or not input.numel():
            return super().forward(input)
        scale = 1 / (1 - self.p)
        if torch.compiler.is_compiling():
            return input * compiled_kept(input.detach(), self.p) * scale
        apply: Any = _Drop.apply
        dropped: Tensor = apply(input, dropped_positions(input.numel(), self.p), scale)
        return dropped


def draw_geometrically(module: nn.Module) -> None:
    """Put :class:`GeometricDropout` in the place of LoRA's dropout, wherever a module of peft has one."""
    for layer in module.modules():
        dropouts = getattr(layer, "lora_dropout", None)
        if isinstance(dropouts, nn.ModuleDict):
            for name, dropout in dropouts.items():
                if type(dropout) is nn.Dropout:
                    dropouts[name] = GeometricDropout(dropout.p)
