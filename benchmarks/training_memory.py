"""Peak memory of training beside that of Hugging Face's Trainer, on the same weights, rows, adapter and batch.

    python benchmarks/training_memory.py --out benchmarks/results/training_memory.json

A random model of 136 M parameters (SmolLM2-135M's shape, vocabulary 49,152, tied embeddings, a narrow vision encoder)
lies in a folder; each way of training loads it in a process of its own, takes some steps of 8 rows of the embedded
VQAv2 and tells Linux's figures: peak resident memory (``VmHWM``), which counts the mapped checkpoint, and peak
anonymous memory (read every 3 ms). Ours runs with the C library as ``tools/fit.py`` sets it up and, for comparison,
as it comes; the Trainer as it comes.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from report import write_report

from mllm_lit.adapters import Adapter, Full, LoRA
from mllm_lit.allocator import JOINED, TUNABLES
from mllm_lit.backbones import Backbone
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import Sample
from mllm_lit.summary import commit
from mllm_lit.tasks import VQAv2, embedded_root

BATCH = 8
STEPS = {16: 4, 256: 2}
"""Picture tokens -> steps."""
WAYS = {"ours": {TUNABLES: JOINED}, "ours, allocator as it comes": {TUNABLES: ""}, "Trainer": {TUNABLES: ""}}
AIM = 0.9


def status(key: str) -> int:
    """A figure of this process, in bytes."""
    with open("/proc/self/status", encoding="ascii") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))


def adapter_of(name: str) -> Adapter:
    """LoRA as is usual, or all of the LLM and the connector."""
    return LoRA(rank=16, alpha=32) if name == "lora" else Full()


def train_here(folder: Path, adapter: str, rows: list[Sample]) -> None:
    """With this package's module."""
    import lightning as L
    from torch.utils.data import DataLoader

    from mllm_lit.module import MLLMModule

    module = MLLMModule(Backbone(str(folder), dtype="float32"), adapter_of(adapter))
    module.configure_model()
    off: dict[str, Any] = {f"enable_{name}": False for name in ("checkpointing", "progress_bar", "model_summary")}
    trainer = L.Trainer(accelerator="cpu", logger=False, max_epochs=1, use_distributed_sampler=False, **off)
    trainer.fit(module, DataLoader(rows, batch_size=BATCH, collate_fn=module.collate))  # type: ignore[arg-type]


def train_there(folder: Path, adapter: str, rows: list[Sample]) -> None:
    """With Hugging Face's Trainer and its own loss."""
    from transformers import Trainer, TrainingArguments

    loaded = Backbone(str(folder), dtype="float32").load()
    net, collate = adapter_of(adapter).attach(loaded), Collate(loaded.processor)

    def batch(samples: list[Sample]) -> dict[str, Any]:
        made = collate(samples)
        return {**made.inputs, "labels": made.labels}

    settings: Any = {
        "per_device_train_batch_size": BATCH,
        "num_train_epochs": 1,
        "report_to": [],
        "save_strategy": "no",
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    arguments = TrainingArguments(str(folder / "out"), **settings)
    Trainer(model=net, args=arguments, train_dataset=rows, data_collator=batch).train()  # type: ignore[arg-type]


def child(way: str, adapter: str, folder: Path, steps: int) -> None:
    """Train and print the peaks."""
    torch.set_num_threads(1)
    rows = list(VQAv2().rows(embedded_root("vqav2"), "train2014"))[: BATCH * steps]
    peak = [0]

    def watch() -> None:
        while True:
            peak[0] = max(peak[0], status("RssAnon"))
            time.sleep(0.003)

    threading.Thread(target=watch, daemon=True).start()
    begin = time.process_time()
    (train_there if way == "Trainer" else train_here)(folder, adapter, rows)
    seconds = time.process_time() - begin
    print(json.dumps({"resident_bytes": status("VmHWM"), "anonymous_bytes": peak[0], "cpu_seconds": round(seconds, 2)}))


def measure(tokens: int, adapter: str, folder: Path) -> dict[str, Any]:
    """All ways, in turn."""
    found: dict[str, Any] = {}
    for way, environment in WAYS.items():
        command = [sys.executable, __file__, "--child", way, adapter, str(folder), str(STEPS[tokens])]
        env = {**os.environ, **environment, "PYTHONPATH": str(Path(__file__).parents[1])}
        out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=env).stdout
        found[way] = json.loads(out.splitlines()[-1])
    ratio = found["ours"]["resident_bytes"] / found["Trainer"]["resident_bytes"]
    return found | {"ours over Trainer": ratio, "aim": AIM, "reached": ratio <= AIM, "steps": STEPS[tokens]}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    if options.child is not None:
        way, adapter, folder, steps = options.child
        child(way, adapter, Path(folder), int(steps))
        return
    from evaluation import random_model

    embedded = Backbone(dtype="float32").load().processor
    report: dict[str, Any] = {"settings": {}}
    for tokens in STEPS:
        with tempfile.TemporaryDirectory() as place:
            for part in random_model(tokens, embedded):
                part.save_pretrained(place)
            del part
            for adapter in ("lora", "full"):
                key = f"{adapter}, {tokens} picture tokens"
                report["settings"][key] = measure(tokens, adapter, Path(place))
                sys.stderr.write(f"{key}: {json.dumps(report['settings'][key])}\n")
    report |= {
        "batch": BATCH,
        "dtype": "float32",
        "libc": " ".join(platform.libc_ver()),
        "commit": commit(),
        "device": f"{platform.machine()}, one thread",
        "versions": {name: version(name) for name in ("torch", "transformers", "lightning", "peft")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
