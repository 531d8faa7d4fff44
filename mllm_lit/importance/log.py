"""What a rule did, block by block: scalars, histograms and heat maps for the loggers."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import lightning as L
import numpy as np
import torch

from mllm_lit.backbones.layout import Layout
from mllm_lit.importance.base import BINS, Rule
from mllm_lit.loggers import log_histogram, log_picture, log_scalars
from mllm_lit.plots import heat_map

KEYS = ("selected", "mask", "overlap", "distance", "relative_distance")
"""What is logged of :meth:`Rule.statistics`."""


def log_rule(trainer: L.Trainer, rule: Rule, layout: Layout, step: int) -> None:
    """Write a rule's figures; under sharding every rank has to call it.

    Scalars ``importance/<part>/<figure>``, parts being roles and ``block_NN``; histograms of the mask's entries
    (``importance_mask/<part>``) and of each figure over a role's tensors; a heat map of blocks by modules per figure.
    """
    figures = {name: {k: float(v) for k, v in row.items()} for name, row in rule.statistics().items()}
    if not any(figures.values()):
        return
    masks = rule.histograms() if trainer.loggers else {}
    parts: dict[str, list[str]] = {}
    for name in figures:
        for part in parts_of(name, layout):
            parts.setdefault(part, []).append(name)
    sizes = {name: parameter.numel() for name, parameter in rule.parameters.items()}
    for part, names in parts.items():
        means = {f"importance/{part}/{k}": v for k, v in combined({n: figures[n] for n in names}, sizes).items()}
        log_scalars(trainer, means, step)
        counts = [masks[name] for name in names if name in masks]
        if counts:
            entries = torch.stack(counts).sum(0).numpy()
            log_histogram(trainer, f"importance_mask/{part}", entries, np.linspace(0.0, 1.0, BINS + 1), step)
        if not part.startswith("block_"):
            for key in KEYS:
                values = [figures[name][key] for name in names if key in figures[name]]
                if values:
                    log_histogram(trainer, f"importance/{part}/{key}", *np.histogram(values, BINS), step)
    for key in KEYS[:4]:
        cells: dict[tuple[str, str], list[float]] = {}
        for name, row in sorted_by_place(figures, layout):
            if key in row:
                cells.setdefault(cell_of(name, layout), []).append(row[key])
        if cells:  # a cell of a role outside the blocks may hold several tensors
            table = {cell: sum(values) / len(values) for cell, values in cells.items()}
            log_picture(trainer, f"importance/{key}", partial(heat_map, key, table), step)


def parts_of(name: str, layout: Layout) -> list[str]:
    """Where a parameter is counted: its role, and its block if it lies in one."""
    block = layout.block_of(name)
    return [layout.role_of(name), *([] if block is None else [f"block_{block:02d}"])]


def combined(figures: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int]) -> dict[str, float]:
    """The figures of several tensors as if they were one (the overlap: the mean, tensors weighted by their size)."""
    result = {}
    for key in ("selected", "mask", "overlap"):
        names = [name for name, row in figures.items() if key in row]
        if names:
            result[key] = sum(figures[n][key] * sizes[n] for n in names) / sum(sizes[n] for n in names)
    if all("distance" in row for row in figures.values()):
        moved, norm = (sum(row[key] ** 2 for row in figures.values()) ** 0.5 for key in ("distance", "norm"))
        result |= {"distance": moved} | ({"relative_distance": moved / norm} if norm else {})
    return result


def cell_of(name: str, layout: Layout) -> tuple[str, str]:
    """Row (block or role) and column (module) of a parameter in the heat map.

    >>> layout = Layout(("v",), ("c",), ("llm",), "llm.layers")
    >>> cell_of("base_model.model.llm.layers.3.attn.q_proj.lora_A.default.weight", layout)
    ('block 3', 'q_proj.lora_A')
    >>> cell_of("c.linear_1.bias", layout)
    ('connector', 'linear_1.bias')
    """
    block = layout.block_of(name)
    short = name.replace(".base_layer", "").replace(".default", "").removesuffix(".weight")
    row = layout.role_of(name) if block is None else f"block {block}"
    tail = short.split(".")
    return row, ".".join(tail[-2:] if tail[-1] in ("bias", "lora_A", "lora_B") else tail[-1:])


def sorted_by_place(figures: Mapping[str, Any], layout: Layout) -> list[tuple[str, Any]]:
    """Roles outside the blocks first, then block by block."""

    def place(item: tuple[str, Any]) -> int:
        block = layout.block_of(item[0])
        return -1 if block is None else block

    return sorted(figures.items(), key=place)
