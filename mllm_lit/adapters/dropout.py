"""Dropout whose masks cost a CPU a third of torch's."""

import torch
from torch import Tensor, nn

LEVELS = 2**16


class PackedDropout(nn.Dropout):
    """Dropout that draws four elements of a mask from one 64-bit number on a CPU; elsewhere it is torch's.

    Elements are dropped independently, with probability ``p`` rounded to a multiple of 2⁻¹⁶ (0.05: 0.050003), and the
    rest is divided by exactly what is kept on average. The numbers are those of torch's default generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with elements set to zero and the others scaled, in training."""
        dropped = round(self.p * LEVELS)
        packed = input.device.type == "cpu" and 0 < dropped < LEVELS and not torch.compiler.is_compiling()
        if not (self.training and packed):
            return super().forward(input)
        count = input.numel()
        words = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
        levels = words.view(torch.int16)[:count].view(input.shape)
        # Written as numbers at once: a mask of booleans would be converted in every product.
        mask = torch.ge(levels, dropped - LEVELS // 2, out=torch.empty(input.shape, dtype=input.dtype))
        return input * mask.mul_(LEVELS / (LEVELS - dropped))


def pack_masks(module: nn.Module) -> None:
    """Put :class:`PackedDropout` in the place of LoRA's dropout, wherever a module of peft has one."""
    for layer in module.modules():
        dropouts = getattr(layer, "lora_dropout", None)
        if isinstance(dropouts, nn.ModuleDict):
            for name, dropout in dropouts.items():
                if type(dropout) is nn.Dropout:
                    dropouts[name] = PackedDropout(dropout.p)
