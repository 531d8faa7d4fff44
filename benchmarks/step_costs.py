"""What of a training step on a CPU can be spared: masks of LoRA's dropout, AdamW in one pass, compiled blocks, fp32.

    python benchmarks/step_costs.py --out benchmarks/results/step_costs.json

The embedded model on its ScienceQA, 16 rows a step, pictures cached. Variants take turns in one process; times are CPU
seconds of one thread (what else the machine does counts little), the least of the repetitions of each step. Compiling
is timed apart, as what the first two steps take longer. bf16 pays on CPUs with AMX tiles; ``amx`` says whether this is
one.
"""

import argparse
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import made_with
from report import write_report
from torch import nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from mllm_lit.adapters import Full, LoRA
from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.dropout import GeometricDropout
from mllm_lit.answers import answer_nll
from mllm_lit.backbones import Backbone, VisionCache
from mllm_lit.backbones.attention import sdpa_attention
from mllm_lit.backbones.load import has_amx
from mllm_lit.data.collate import Batch
from mllm_lit.module import MLLMModule
from mllm_lit.seed import run_seed
from mllm_lit.tasks import ScienceQA, embedded_root

ROWS, STEPS = 16, 6


class Variant:
    """A model with its own optimizer."""

    def __init__(
        self,
        adapter: Adapter,
        compiled: bool = False,
        torch_masks: bool = False,
        fused: bool = True,
        bf16: bool = False,
        attention: Callable[..., Any] = sdpa_attention,
    ) -> None:
        backbone = Backbone(dtype="bfloat16" if bf16 else "float32", compile=compiled)
        self.module = MLLMModule(backbone, adapter, vision_cache=VisionCache())
        self.bf16, self.attention = bf16, attention
        self.module.configure_model()
        assert self.module.loaded is not None
        assert self.module.net is not None
        if torch_masks:
            for layer in [*self.module.net.modules()]:
                for name, child in layer.named_children():
                    if isinstance(child, GeometricDropout):
                        setattr(layer, name, nn.Dropout(child.p))
        groups = adapter.parameter_groups(self.module.net, self.module.loaded.layout)
        self.optimizer = torch.optim.AdamW(groups, fused=fused, foreach=not fused)
        self.first = self.least = float("nan")
        self.losses: list[float] = []
        self.optimizer_seconds = float("inf")

    def step(self, batch: Batch) -> float:
        """CPU seconds of a step."""
        assert self.module.net is not None
        begin = time.process_time()
        AttentionInterface.register("sdpa", self.attention)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            nll, counts = answer_nll(self.module.net, batch)
            loss = nll.sum() / counts.sum()
        loss.backward()
        stepped = time.process_time()
        self.optimizer.step()
        self.optimizer_seconds = min(self.optimizer_seconds, time.process_time() - stepped)
        self.optimizer.zero_grad()
        self.losses.append(loss.item())
        return time.process_time() - begin


def measure(variants: dict[str, Callable[[], Variant]], repeat: int) -> dict[str, dict[str, float]]:
    """Let them take turns."""
    made = {name: make() for name, make in variants.items()}
    one = next(iter(made.values())).module
    rows = ScienceQA().rows(embedded_root("scienceqa"), "train")
    batches = [one.collate(rows[i * ROWS : (i + 1) * ROWS]) for i in range(STEPS)]
    wall: dict[str, float] = {}
    for name, variant in made.items():
        torch.manual_seed(run_seed())
        begin, variant.first = time.perf_counter(), sum(variant.step(batch) for batch in batches[:2])
        wall[name] = time.perf_counter() - begin
        for batch in batches[2:]:
            variant.step(batch)
    seconds = {name: [float("inf")] * STEPS for name in made}
    for _ in range(repeat):
        for name, variant in made.items():
            for i, batch in enumerate(batches):
                seconds[name][i] = min(seconds[name][i], variant.step(batch))
    return {
        name: {
            "ms a step": 1e3 * sum(seconds[name]) / STEPS,
            "ms of AdamW": 1e3 * variant.optimizer_seconds,
            "CPU seconds of the first two steps": variant.first,
            "seconds of the first two steps": wall[name],
            "first loss": variant.losses[0],
        }
        for name, variant in made.items()
    }


def main() -> None:
    """Measure LoRA and full tuning, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=4)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    os.environ["TORCHINDUCTOR_FORCE_DISABLE_CACHES"] = "1"  # of earlier compilations

    def lora(dropout: float = 0.05, **how: Any) -> Variant:
        return Variant(LoRA(rank=16, alpha=32, dropout=dropout, lr=2e-3, connector="tuned"), **how)

    def full(**how: Any) -> Variant:
        return Variant(Full(blocks="all", lr=1e-4, connector="tuned"), **how)

    report = made_with() | {
        "threads": 1,
        "amx": has_amx(),
        "LoRA": measure(
            {
                "as it is": lora,
                "torch's masks": lambda: lora(torch_masks=True),
                "no dropout": lambda: lora(dropout=0.0),
                "AdamW tensor by tensor": lambda: lora(fused=False),
                "compiled blocks": lambda: lora(compiled=True),
                "bf16": lambda: lora(bf16=True),
                "bf16, torch's attention": lambda: lora(bf16=True, attention=sdpa_attention_forward),
            },
            options.repeat,
        ),
        "full tuning": measure(
            {
                "as it is": full,
                "AdamW tensor by tensor": lambda: full(fused=False),
                "compiled blocks": lambda: full(compiled=True),
                "bf16": lambda: full(bf16=True),
                "bf16, torch's attention": lambda: full(bf16=True, attention=sdpa_attention_forward),
            },
            options.repeat,
        ),
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
