"""Dropout whose masks cost a CPU about half of torch's."""

import torch
from torch import Tensor, nn

LEVELS = 2**16


def random_words(input: Tensor) -> Tensor:
    """64 random bits for every four elements of a tensor, from torch's default generator, as int64."""
    return torch.empty((input.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)


# A compiled graph calls it as one piece, in an order of its own. The tag keeps two calls from being taken for one, and
# has recomputation restore the generator's state, of the device the input is on.
compiled_words = torch.library.custom_op(
    "mllm_lit::random_words", random_words, mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,)
)
compiled_words.register_fake(lambda input: torch.empty((input.numel() + 3) // 4, dtype=torch.int64))


class PackedDropout(nn.Dropout):
    """Dropout that draws four elements of a mask from one 64-bit number on a CPU; elsewhere it is torch's.

    Elements are dropped independently, with probability ``p`` rounded to a multiple of 2⁻¹⁶ (0.05: 0.050003), and the
    rest is divided by exactly what is kept on average. The numbers are those of torch's default generator.
    """

    def forward(self, input: Tensor) -> Tensor:
        """The input with elements set to zero and the others scaled, in training."""
        dropped = round(self.p * LEVELS)
        if not self.training or input.device.type != "cpu" or not 0 < dropped < LEVELS:
            return super().forward(input)
        count, compiling = input.numel(), torch.compiler.is_compiling()
        words = (compiled_words if compiling else random_words)(input)
        levels = words.view(torch.int16)[:count].view(input.shape)
        least, scale = dropped - LEVELS // 2, LEVELS / (LEVELS - dropped)
        if compiling:
            return input * torch.where(levels >= least, scale, 0.0).to(input.dtype)
        # Written as numbers at once: a mask of booleans would be converted in every product.
        mask = torch.ge(levels, least, out=torch.empty(input.shape, dtype=input.dtype))
        return input * mask.mul_(scale)


def pack_masks(module: nn.Module) -> None:
    """Put :class:`PackedDropout` in the place of LoRA's dropout, wherever a module of peft has one."""
    for layer in module.modules():
        dropouts = getattr(layer, "lora_dropout", None)
        if isinstance(dropouts, nn.ModuleDict):
            for name, dropout in dropouts.items():
                if type(dropout) is nn.Dropout:
                    dropouts[name] = PackedDropout(dropout.p)
