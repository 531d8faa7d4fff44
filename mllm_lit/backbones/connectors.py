"""Connectors between any vision encoder and any LLM: ``(B, N, C)`` patch features to ``(B, M, D)`` embeddings."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mllm_lit.errors import SettingError

Kind = Literal["linear", "mlp2x_gelu", "resampler", "downsample", "downsample_3x3", "pixel_shuffle"]


@dataclass(frozen=True)
class Sizes:
    """What a connector is built from.

    Attributes:
        grid: Patches along one side of the picture; N is its square.
        vision: Width C of a patch's feature.
        llm: Width D of the LLM's embeddings.
        queries: Embeddings a resampler makes of a picture.
        transposed: Emit downsampled patches column by column, as VILA-1.5 was trained with.
    """

    grid: int
    vision: int
    llm: int
    queries: int = 64
    transposed: bool = False


class Mlp(nn.Module):
    """One or more linear layers with GELU between them (LLaVA-1.5's ``mlp2x_gelu``)."""

    def __init__(self, sizes: Sizes, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(sizes.vision, sizes.llm)]
        for _ in range(depth - 1):
            layers += [nn.GELU(), nn.Linear(sizes.llm, sizes.llm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, N, C) -> (B, N, D)``."""
        return self.layers(features)


class SpaceToDepth(nn.Module):
    """Puts ``factor`` x ``factor`` neighbours side by side; a grid that does not divide is padded with zeros."""

    def __init__(self, factor: int, transposed: bool = False) -> None:
        super().__init__()
        self.factor = factor
        self.transposed = transposed

    def forward(self, features: Tensor) -> Tensor:
        """``(B, n*n, C) -> (B, m*m, factor*factor*C)`` with m = ceil(n / factor)."""
        batch, count, width = features.shape
        side, factor = math.isqrt(count), self.factor
        pad = -side % factor
        square = nn.functional.pad(features.view(batch, side, side, width), (0, 0, 0, pad, 0, pad))
        out = (side + pad) // factor
        blocks = square.view(batch, out, factor, out, factor, width).permute(0, 1, 3, 2, 4, 5)
        if self.transposed:
            blocks = blocks.transpose(1, 2)
        return blocks.reshape(batch, out * out, factor * factor * width)


class Downsample(nn.Module):
    """VILA's spatial downsampling; ``layers`` are numbered as in its checkpoints (arXiv 2312.07533, 2412.04468)."""

    def __init__(self, sizes: Sizes, factor: int) -> None:
        super().__init__()
        inside = factor * factor * sizes.vision
        layers: list[nn.Module] = [SpaceToDepth(factor, sizes.transposed), nn.LayerNorm(inside)]
        if factor == 3:
            narrow = 3 * sizes.vision
            layers += [nn.Linear(inside, narrow), nn.GELU(), nn.LayerNorm(narrow)]
            inside = narrow
        layers += [nn.Linear(inside, sizes.llm), nn.GELU(), nn.Linear(sizes.llm, sizes.llm)]
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, N, C) -> (B, M, D)`` with M = ceil(n / factor)^2."""
        return self.layers(features)


class PixelShuffle(nn.Module):
    """Space to depth by two and one linear layer, as in Idefics3 (arXiv 2408.12637)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        if sizes.grid % 2:
            raise SettingError(f"pixel_shuffle halves the grid, which has {sizes.grid} patches a side. Use downsample.")
        self.shuffle = SpaceToDepth(2)
        self.proj = nn.Linear(4 * sizes.vision, sizes.llm, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """``(B, N, C) -> (B, N/4, D)``."""
        return self.proj(self.shuffle(features))


class Resampler(nn.Module):
    """Learned queries that attend once to all patches, with 2-D positions, as in Qwen-VL (arXiv 2308.12966)."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        side = math.isqrt(sizes.queries)
        if side * side != sizes.queries:
            raise SettingError(f"A resampler's queries form a square; {sizes.queries} is none. Try {side * side}.")
        width = sizes.llm
        if width % 4:
            raise SettingError(f"A resampler's 2-D positions need a width divisible by 4; this LLM has {width}.")
        self.query = nn.Parameter(torch.empty(sizes.queries, width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.kv_proj = nn.Linear(sizes.vision, width, bias=False)
        self.ln_q, self.ln_kv, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, max(1, width // 128), batch_first=True)
        self.proj = nn.Linear(width, width, bias=False)
        self.query_position: Tensor
        self.key_position: Tensor
        self.register_buffer("query_position", positions_2d(side, width))
        self.register_buffer("key_position", positions_2d(sizes.grid, width))

    def forward(self, features: Tensor) -> Tensor:
        """``(B, N, C) -> (B, queries, D)``."""
        keys = self.ln_kv(self.kv_proj(features))
        queries = self.ln_q(self.query).expand(len(features), -1, -1)
        out, _ = self.attn(queries + self.query_position, keys + self.key_position, keys, need_weights=False)
        return self.proj(self.ln_post(out))


def positions_2d(side: int, width: int) -> Tensor:
    """Sine and cosine positions of a square grid, rows in the first half of the width, ``(side*side, width)``."""
    frequencies = 10000.0 ** -(torch.arange(width // 4, device="cpu") / (width // 4))
    angles = torch.arange(side, device="cpu")[:, None] * frequencies
    line = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = line[:, None].expand(side, side, -1)
    return torch.cat([rows, rows.transpose(0, 1)], dim=2).reshape(side * side, width)


CONNECTORS: dict[str, Callable[[Sizes], nn.Module]] = {
    "linear": lambda sizes: Mlp(sizes, 1),
    "mlp2x_gelu": lambda sizes: Mlp(sizes, 2),
    "resampler": Resampler,
    "downsample": lambda sizes: Downsample(sizes, 2),
    "downsample_3x3": lambda sizes: Downsample(sizes, 3),
    "pixel_shuffle": PixelShuffle,
}


def tokens_per_image(kind: str, sizes: Sizes) -> int:
    """How many embeddings the LLM sees of one picture."""
    side = {"downsample": math.ceil(sizes.grid / 2), "downsample_3x3": math.ceil(sizes.grid / 3)}.get(kind, sizes.grid)
    if kind == "pixel_shuffle":
        side = sizes.grid // 2
    return sizes.queries if kind == "resampler" else side * side
