"""What keeping a frozen vision encoder's features saves, beside the most that it could.

    python benchmarks/vision_cache.py --out benchmarks/results/vision_cache.json

Training steps (forward, backward, AdamW; LoRA and connector) on the embedded model and data, and on a random model of
SmolVLM-256M's shape (SigLIP-B/16 and SmolLM2-135M, pixel shuffle). Epochs without the cache take turns with such that
fill it, then with such that find every picture in it, in one process and from the same weights. Times are CPU seconds
of one thread (what else the machine does counts little), the least of the repetitions. The limit is the speed-up if the
encoder took no time at all.
"""

import argparse
import os
import platform
import resource
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from report import write_report
from torch import Tensor
from transformers import LlamaConfig, SiglipVisionConfig

from mllm_lit.adapters import LoRA
from mllm_lit.answers import answer_nll
from mllm_lit.backbones import Backbone, LoadedBackbone, VisionCache, find_layout
from mllm_lit.backbones.composed import ComposedConfig, ComposedForConditionalGeneration
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.module import MLLMModule
from mllm_lit.seed import run_seed
from mllm_lit.summary import commit
from mllm_lit.tasks import ScienceQA, embedded_root


class RandomBackbone(Backbone):
    """A SigLIP-B/16 at 224 pixels and a SmolLM2-135M, 49 tokens a picture, with weights drawn at random."""

    def load(self) -> LoadedBackbone:
        """Build it; it has no processor."""
        vision = SiglipVisionConfig(
            hidden_size=768,
            intermediate_size=3072,
            num_hidden_layers=12,
            num_attention_heads=12,
            patch_size=16,
            vision_use_head=False,
        )
        text = LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        )
        make: Any = ComposedConfig
        config = make(
            vision_config=vision,
            text_config=text,
            image_token_index=1,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
            connector="pixel_shuffle",
            tie_word_embeddings=True,
        )
        model = ComposedForConditionalGeneration(config).eval()
        return LoadedBackbone(model, None, find_layout(model), "random", "random")  # type: ignore[arg-type]


def random_batches(pictures: int, size: int) -> list[Batch]:
    """Random pixels, and 49 image tokens with 32 of text, the last 4 an answer."""
    batches = []
    for _ in range(pictures // size):
        ids = torch.cat([torch.ones(size, 49, dtype=torch.long), torch.randint(2, 49152, (size, 32))], 1)
        labels = torch.full_like(ids, IGNORE)
        labels[:, -4:] = ids[:, -4:]
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        batches.append(Batch(inputs | {"pixel_values": torch.randn(size, 3, 224, 224)}, labels, [], ids.numel()))
    return batches


def embedded_batches(module: MLLMModule, rows: int, size: int) -> list[Batch]:
    """The first rows with a picture of the embedded ScienceQA, a picture each."""
    samples = [row for row in ScienceQA().rows(embedded_root("scienceqa"), "train") if row.images]
    distinct = list({sample.images[0]: sample for sample in samples}.values())[:rows]
    assert module.loaded is not None
    collate = Collate(module.loaded.processor)
    return [collate(distinct[i : i + size]) for i in range(0, rows, size)]


def epoch(module: MLLMModule, batches: list[Batch], start: dict[str, Tensor]) -> tuple[list[float], list[float]]:
    """CPU seconds and loss of each step, from the given weights."""
    parameters = dict(module.trainable())
    with torch.no_grad():
        for name, value in start.items():
            parameters[name].copy_(value)
    assert module.loaded is not None
    assert module.net is not None
    optimizer = torch.optim.AdamW(module.adapter.parameter_groups(module.net, module.loaded.layout))
    seconds, losses = [], []
    torch.manual_seed(run_seed())  # The adapter's dropout.
    for batch in batches:
        begin = time.process_time()
        nll, counts = answer_nll(module.net, batch)
        loss = nll.sum() / counts.sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - begin)
        losses.append(loss.item())
    return seconds, losses


@contextmanager
def timed(tower: torch.nn.Module) -> Iterator[list[float]]:
    """CPU seconds of each call of a module."""
    calls: list[float] = []
    begun: list[float] = []
    hooks = (
        tower.register_forward_pre_hook(lambda *_: begun.append(time.process_time())),
        tower.register_forward_hook(lambda *_: calls.append(time.process_time() - begun.pop())),
    )
    yield calls
    for hook in hooks:
        hook.remove()


def measure(module: MLLMModule, batches: list[Batch], repeat: int) -> dict[str, Any]:
    """Let an epoch without the cache take turns with one that fills it, then with one that finds everything."""
    assert module.loaded is not None
    start = {name: parameter.detach().clone() for name, parameter in module.trainable()}
    tower = module.loaded.model.get_submodule(module.loaded.layout.vision[0])
    losses: list[list[float]] = []

    def turn(cache: VisionCache | None) -> tuple[list[float], list[float]]:
        if cache is not None:
            # Once a run, one picture is encoded alone, too; among so few here it would count for far more than it does.
            cache._probed = True
            cache.attach(module.loaded, ["llm", "connector"])  # type: ignore[arg-type]
        with timed(tower) as calls:
            seconds, found = epoch(module, batches, start)
        losses.append(found)
        if cache is not None:
            tower.__dict__.pop("forward")
        return seconds, calls

    epoch(module, batches[:1], start)
    full = VisionCache()
    turn(full)
    filling = [(turn(None), turn(VisionCache())) for _ in range(repeat)]
    finding = [(turn(None), turn(full)) for _ in range(repeat)]

    def least(runs: list[list[float]]) -> float:
        return sum(map(min, zip(*runs, strict=True))) / len(batches)

    share = least([calls for (_, calls), _ in finding]) / least([seconds for (seconds, _), _ in finding])
    without, kept = (least([pair[which][0] for pair in finding]) for which in (0, 1))
    before, filled = (least([pair[which][0] for pair in filling]) for which in (0, 1))
    return {
        "seconds per step": {"without": without, "kept": kept},
        "vision share": share,
        "speedup": without / kept,
        "limit": 1 / (1 - share),
        "lookups, share of a step": least([calls for _, (_, calls) in finding]) / kept,
        "filling over without": filled / before,
        "losses equal bit for bit": all(found == losses[0] for found in losses),
        "pictures": full.encoded,
        "bytes per picture": full.bytes // full.encoded,
        "steps": len(batches),
        "batch": len(batches[0].labels),
    }


def main() -> None:
    """Measure both models and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="vision_cache")
    torch.set_num_threads(1)
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    torch.manual_seed(run_seed())
    embedded = MLLMModule(Backbone(), LoRA(rank=16, alpha=32))
    embedded.configure_model()
    random = MLLMModule(RandomBackbone(), LoRA(rank=16, alpha=32))
    random.configure_model()
    report = {
        "models": {
            "embedded": measure(embedded, embedded_batches(embedded, 64, 16), options.repeat),
            "SmolVLM-256M's shape": measure(random, random_batches(8, 4), options.repeat),
        },
        "repeat": options.repeat,
        "seed": run_seed(),
        "dtype": "float32",
        "load average": os.getloadavg(),
        "commit": commit(),
        "device": f"{platform.machine()}, one thread",
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
