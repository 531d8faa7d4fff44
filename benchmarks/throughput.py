"""Training by this package beside Hugging Face's Trainer and TRL's SFTTrainer: rows and labels a second, peak memory.

    pip install -c constraints.txt -e '.[benchmarks]'
    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Same weights, rows, batches, adapter, learning rate and clipping, fp32, a picture a row and no loader processes: what
each trainer does in a step is its own (``benchmarks/trainers.py``). The embedded model, and one of 135 M parameters
with random weights (SmolLM2's shape, a vision encoder of four narrow blocks); questions of the embedded VQAv2 on random
pictures. Every run is a process of its own, and they take turns. Times are CPU seconds of one thread (what else the
machine does counts little) from the end of the first steps to the end of the last one, the least of the turns; memory
is the highest that the process ever held. A comparison counts only if all have the same loss in the first step.

With five questions a picture this package runs as well with ``data.share_pictures``, whose batches hold other rows: its
first loss is compared with that of the same rows, one sequence each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from machine import PACKAGES, made_with
from models import asked, random_model

from mllm_lit.backbones import Backbone
from mllm_lit.backbones.load import EMBEDDED
from mllm_lit.data.sample import Sample
from mllm_lit.tasks import VQAv2, embedded_root

OVER_TRAINER = {1: 1.5, 5: 3.0}
"""The aim, by questions a picture; for five at 256 tokens a picture or more."""
OF_ITS_MEMORY = 0.9
"""The aim: at most so much of what the Trainer needs."""
SAME_LOSS = 1e-3
OPTIONS: dict[str, Any] = {}
"""What this package is run with in all cells, as settings of the command line."""
SHARED: dict[str, Any] = {"data.share_pictures": True}
"""And, where it runs twice, the second time."""


@dataclass(frozen=True)
class Cell:
    """What is trained on what.

    Attributes:
        model: ``embedded`` or ``135 M``.
        tuning: ``lora`` or ``full``.
        tokens: A picture's.
        questions: A picture.
        batch: Rows of a step.
        first: Steps that are not timed.
        steps: Steps that are.
        turns: How often each trainer runs.
    """

    model: str
    tuning: str
    tokens: int
    questions: int
    batch: int
    first: int
    steps: int
    turns: int

    @property
    def name(self) -> str:
        """In the result."""
        return f"{self.model}, {self.tuning}, {self.tokens} tokens, {self.questions} a picture"


# Of the 135 M, by tokens a picture: batch, steps that are not timed, steps that are, turns.
SIZES = {16: (10, 1, 4, 2), 256: (5, 1, 2, 1), 576: (5, 1, 1, 1)}
CELLS = [Cell("embedded", tuning, 16, each, 20, 2, 8, 2) for tuning in ("lora", "full") for each in (1, 5)]
CELLS += [
    Cell("135 M", tuning, tokens, each, *size)
    for tokens, size in SIZES.items()
    for tuning in ("lora", "full")
    for each in (1, 5)
]


def write_rows(folder: Path, questions: list[Sample], cell: Cell, count: int, side: int) -> None:
    """So many rows as conversations in LLaVA's format, which every trainer reads."""
    folder.mkdir()
    rows = [
        {
            "id": str(number),
            "image": str(row.images[0].name),
            "conversations": [
                {"from": "human", "value": f"<image>\n{row.question}"},
                {"from": "gpt", "value": row.answer},
            ],
        }
        for number, row in enumerate(asked(questions, cell.questions, count // cell.questions, side, folder))
    ]
    for split, chosen in {"train": rows, "val": rows[:1], "test": rows[:1]}.items():
        (folder / f"{split}.json").write_text(json.dumps(chosen), encoding="utf-8")


def run(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A training run; or what went wrong in it."""
    out, said = folder / "seen.json", folder / "settings.json"
    out.unlink(missing_ok=True)
    said.write_text(json.dumps(settings | {"out": str(out), "folder": str(folder)}), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).parent / "trainers.py"), name, str(said)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip() or "?").splitlines()[-1]}
    seen: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return seen


def rates(seen: dict[str, Any], first: int) -> dict[str, float]:
    """Per CPU second and second of the clock, over the steps after the first ones."""
    first = min(first, len(seen["cpu"]) - 1)
    rows, labels = sum(seen["rows"][first:]), sum(seen["label_tokens"][first:])
    cpu, wall = (seen[clock][-1] - seen[clock][first - 1] for clock in ("cpu", "wall"))
    return {
        "rows per second": rows / cpu,
        "label tokens per second": labels / cpu,
        "rows per second of the clock": rows / wall,
        "rows per step": rows / (len(seen["cpu"]) - first),
    }


def best(turns: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """The fastest of several runs, and the least memory."""
    failed = next((seen for seen in turns if "error" in seen), None)
    if failed is not None:
        return failed
    fastest = max((rates(seen, first) for seen in turns), key=lambda rate: rate["rows per second"])
    peak = min(seen["peak_bytes"] for seen in turns)
    return fastest | {"peak_memory_bytes": peak, "first loss": turns[0]["losses"][0]}


def compared(found: dict[str, dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """How many times as fast as the peers, the share of their memory, and whether the aims are reached."""
    result: dict[str, Any] = {}
    for mine in [name for name in found if name.startswith("ours") and "error" not in found[name]]:
        over: dict[str, Any] = {}
        for peer in [name for name in ("Trainer", "TRL") if "error" not in found.get(name, {"error": ""})]:
            ratios = {key: found[mine][key] / found[peer][key] for key in ("rows per second", "peak_memory_bytes")}
            over[peer] = {"times as fast": ratios["rows per second"], "of its memory": ratios["peak_memory_bytes"]}
        result[mine] = over
    aims: dict[str, Any] = {"of its memory": OF_ITS_MEMORY}
    if cell.questions == 1 or cell.tokens >= 256:
        aims["times as fast"] = OVER_TRAINER[cell.questions]
    held = result.get("ours, shared pictures" if cell.questions > 1 else "ours", {}).get("Trainer")
    if held is None:
        return {"ratios": result, "aims": aims}
    reached = {"of its memory": held["of its memory"] <= OF_ITS_MEMORY}
    if "times as fast" in aims:
        reached["times as fast"] = held["times as fast"] >= aims["times as fast"]
    return {"ratios": result, "aims": aims, "reached": reached}


def same_losses(found: dict[str, dict[str, Any]]) -> bool:
    """Whether the first losses of all trainers agree; shared pictures have theirs of the same rows apart."""
    there = [one["first loss"] for name, one in found.items() if "first loss" in one and "shared" not in name]
    apart = [abs(one["first loss"] - one["alone"]) for one in found.values() if one.get("alone") is not None]
    return max([max(there) - min(there), *apart]) <= SAME_LOSS


def measure(cell: Cell, weights: Path, side: int, questions: list[Sample], folder: Path, threads: int) -> Any:
    """All trainers in turn."""
    count = cell.batch * (cell.first + cell.steps)
    settings: dict[str, Any] = {"weights": str(weights), "batch": cell.batch, "tuning": cell.tuning, "threads": threads}
    # A step of shared pictures may hold several times as many rows.
    kinds = {"ours": (count, {}), **({"ours, shared pictures": (3 * count, SHARED)} if cell.questions > 1 else {})}
    for number, (rows, _) in enumerate(kinds.values()):
        write_rows(folder / f"rows_{number}", questions, cell, rows, side)
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in [*kinds, "Trainer", "TRL"]}
    for _ in range(cell.turns):
        for number, (name, (_, options)) in enumerate(kinds.items()):
            own = {"rows": str(folder / f"rows_{number}"), "options": OPTIONS | options}
            turns[name].append(run("ours", settings | own, folder))
        if "error" not in turns["ours"][0]:
            theirs = {"rows": str(folder / "rows_0"), "order": turns["ours"][0]["order"]}
            for name in ("Trainer", "TRL"):
                turns[name].append(run(name, settings | theirs, folder))
    found = {name: best(seen, cell.first) for name, seen in turns.items() if seen}
    for name, seen in turns.items():
        if name.startswith("ours") and "error" not in seen[0]:
            found[name]["alone"] = seen[0]["alone"]
    return {"cell": asdict(cell), "trainers": found, "same first loss": same_losses(found), **compared(found, cell)}


def main() -> None:
    """Measure all cells and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="Cells with this in their name.")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    report: dict[str, Any] = made_with([*PACKAGES, "trl", "accelerate"]) | {"threads": options.threads, "cells": {}}
    embedded = Backbone(dtype="float32").load().processor
    questions = list(VQAv2().rows(embedded_root("vqav2"), "train2014"))
    with tempfile.TemporaryDirectory() as scratch:
        for number, cell in enumerate(cell for cell in CELLS if options.only in cell.name):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            weights, side = EMBEDDED, 128
            if cell.model != "embedded":
                model, processor = random_model(cell.tokens, embedded)
                weights, side = Path(scratch) / "weights", model.config.vision_config.image_size
                model.save_pretrained(weights)
                processor.save_pretrained(weights)
                del model
            result = measure(cell, weights, side, questions, folder, options.threads)
            report["cells"][cell.name] = result
            sys.stderr.write(f"{cell.name}: {json.dumps(result)}\n")
    report["load average after"] = os.getloadavg()
    text = json.dumps(report, indent=1)
    sys.stdout.write(f"{text}\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
