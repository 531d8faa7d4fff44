"""Run directories as runs leave them, without a run."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mllm_lit.metrics import tradeoff

VERSIONS = {"mllm_lit": "0", "torch": "0"}


def summary_of(
    target: float,
    sources: Mapping[str, float],
    before: float = 10.0,
    seed: int = 1,
    during: Sequence[Mapping[str, Any]] = (),
    name: str = "toy",
) -> dict[str, Any]:
    """The content of ``summary.json``; sources had 90 points before."""
    after = {name: {"accuracy": target, "accuracy/red": target / 2, "nll": 0.25}}
    after |= {source: {"vqa_accuracy": value, "nll": 0.5} for source, value in sources.items()}
    rows = {
        source: {"metric": "vqa_accuracy", "before": 90.0, "after": value, "forgetting": 90.0 - value}
        | {"nll_before": 0.1, "nll_after": 0.5}
        for source, value in sources.items()
    }
    head = {"name": name, "metric": "accuracy", "before": before, "after": target}
    return {
        "experiment": "toy_run",
        "backbone": "tiny",
        "adapter": "LoRA",
        "importance": None,
        "seed": seed,
        "parameters": {"total": 1000, "trainable": 25},
        "target": head | {"nll_before": 0.75, "nll_after": 0.25},
        "sources": rows,
        "tradeoff": tradeoff(target, list(sources.values())) if sources else None,
        "cost": {"train_seconds": 10.0 * seed, "steps": 6, "tokens_per_second": 100.0, "peak_memory_bytes": 2**30},
        "precision": {"used": "32-true", "why": "as set"},
        "scores": {"before": after, "after": after},
        "during": list(during),
        "versions": VERSIONS,
        "commit": "0123456789abcdef",
    }


def validation(step: int, nll: float, target: float, source: float) -> dict[str, Any]:
    """An entry of ``during``."""
    scores = {"toy": {"accuracy": target, "nll": nll}, "source": {"vqa_accuracy": source, "nll": 1.0}}
    return {"step": step, "epoch": step / 4, "scores": scores}


def record(key: str, score: float | None, nll: float = 1.0, **more: Any) -> dict[str, Any]:
    """A line of a prediction file."""
    told = {"image": [f"{key}.png"], "question": "what colour?", "answer": "red", "references": ["red"]}
    return {"id": key, **told, "prediction": "red", "score": score, "nll": nll, "answer_tokens": 1, "labels": []} | more


def write_records(folder: Path, phase: str, name: str, records: Sequence[Mapping[str, Any]]) -> None:
    """A prediction file."""
    file = folder / "predictions" / phase / f"{name}.jsonl"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(one) + "\n" for one in records))


def write_run(folder: Path, summary: Mapping[str, Any], config: Mapping[str, Any] | None = None) -> Path:
    """A run directory without predictions."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed_everything": summary["seed"], **(config or {})}))
    return folder
