"""EfficientNet-Lite as a vision tower: its last feature map, read row by row, is the sequence of image tokens.

Importing this module registers the architecture with transformers, so that a LLaVA folder which names it loads with
``from_pretrained``. Batch normalisation is folded into the convolutions: training and evaluation mode do the same.

Source: Tan and Le, 2019 (arXiv 1905.11946); the Lite variant (2020) has no squeeze-and-excitation and clips at 6.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# repeats, kernel, stride, expansion, width: Lite0, which is not scaled.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM = 32


class EfficientNetLiteConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]  # a hook of transformers
    """Sizes of the tower.

    Args:
        image_size: Side of the picture in pixels.
        hidden_size: Width of the last feature map.
        kwargs: As for every config.
    """

    model_type = "efficientnet_lite"

    def __init__(self, image_size: int = 128, hidden_size: int = 1280, **kwargs: Any) -> None:
        self.image_size = image_size
        self.hidden_size = hidden_size
        self.patch_size = 32
        self.num_hidden_layers = sum(repeats for repeats, *_ in STAGES)
        super().__init__(**kwargs)


class SameConv(nn.Conv2d):
    """A convolution that pads as TensorFlow does: the odd pixel goes right and below."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        self.surplus = (kernel - stride) // 2, kernel - stride - (kernel - stride) // 2
        padding = kernel // 2 if stride == 1 else 0
        super().__init__(width_in, width_out, kernel, stride, padding, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride[0] > 1:
            x = F.pad(x, (*self.surplus, *self.surplus))
        return super().forward(x)


class Block(nn.Module):
    """Expand, filter each channel, project; with a skip where the shapes allow it."""

    def __init__(self, width_in: int, width_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        width = width_in * expansion
        self.expand = SameConv(width_in, width, 1) if expansion > 1 else None
        self.depthwise = SameConv(width, width, kernel, stride, groups=width)
        self.project = SameConv(width, width_out, 1)
        self.skip = stride == 1 and width_in == width_out

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.skip else y


class EfficientNetLiteModel(PreTrainedModel):  # type: ignore[no-untyped-call]  # a hook of transformers
    """The tower; ``hidden_states`` holds the final tokens only."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    # There is no attention here, so every implementation that the LLM may ask for is fine.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = True
    _no_split_modules = ["Block"]

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.stem = SameConv(3, STEM, 3, 2)
        blocks: list[Block] = []
        width = STEM
        for repeats, kernel, stride, expansion, width_out in STAGES:
            for repeat in range(repeats):
                blocks.append(Block(width, width_out, kernel, stride if repeat == 0 else 1, expansion))
                width = width_out
        self.blocks = nn.ModuleList(blocks)
        self.head = SameConv(width, config.hidden_size, 1)
        self.post_init()  # type: ignore[no-untyped-call]

    def forward(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Pictures (B, 3, S, S) to tokens (B, (S / 32)², hidden size)."""
        # Channels last is twice as fast for depthwise convolutions on a CPU.
        pixels = pixel_values.to(self.stem.weight.dtype).contiguous(memory_format=torch.channels_last)
        # One at a time is faster on a CPU, too, and makes a picture's tokens independent of the rest of its batch.
        batches = torch.split(pixels, 1) if pixels.device.type == "cpu" else (pixels,)
        tokens = torch.cat([self._tokens(batch) for batch in batches])
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens, pooler_output=tokens.mean(1), hidden_states=(tokens,)
        )

    def _tokens(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x)).flatten(2).transpose(1, 2)


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
