"""Training by this package beside Hugging Face's Trainer and TRL's SFTTrainer: rows and labels a second, peak memory.

    pip install -c constraints.txt -e '.[benchmarks]'
    python benchmarks/throughput.py --out benchmarks/results/throughput.json

Same weights, rows, batches, adapter, learning rate and clipping, fp32, a picture a row and no loader processes: what
each trainer does in a step is its own (``benchmarks/trainers.py``). The embedded model, and one of 135 M parameters
with random weights (SmolLM2's shape, a vision encoder of four narrow blocks); questions of the embedded VQAv2 on random
pictures. Every run is a process of its own, and they take turns; two run at once, always of the same trainer, LoRA
beside full tuning. Times are CPU seconds of one thread (what else the machine does counts little) from the end of one
step to the end of the next, the first steps aside; the fastest step of all turns counts. Memory is the highest that the
process held up to the end of the last step (this package saves what was trained after it). A comparison counts only if
all have the same loss in the first step.

With five questions a picture this package runs as well with ``data.share_pictures``, on captions and on rows without a
picture with ``data.pack``. Their batches hold other rows, so their first loss is compared with that of the same rows,
one sequence each.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from machine import PACKAGES, made_with
from models import asked, random_model
from trainers import conversations

from mllm_lit.allocator import JOINED, TUNABLES
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.load import EMBEDDED
from mllm_lit.data.sample import Sample
from mllm_lit.tasks import COCOCaptions, ScienceQA, VQAv2, embedded_root

OVER_TRAINER = {1: 1.5, 5: 3.0}
"""The aim, by questions a picture; for five at 256 tokens a picture or more."""
OF_ITS_MEMORY = 0.9
"""The aim: at most so much of what the Trainer needs."""
SAME_LOSS = 1e-3
OPTIONS: dict[str, Any] = {}
"""What this package is run with in all cells, as settings of the command line."""
APART: dict[str, dict[str, Any]] = {
    "ours, shared pictures": {"data.share_pictures": True},
    "ours, packed": {"data.pack": True},
}
"""And where it runs a second time."""


@dataclass(frozen=True)
class Cell:
    """What is trained on what.

    Attributes:
        model: ``embedded`` or ``135 M``.
        tuning: ``lora`` or ``full``.
        tokens: A picture's.
        questions: A picture; 0 for rows without one.
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
    rows: str = "questions"

    @property
    def name(self) -> str:
        """In the result."""
        what = f"{self.tokens} tokens, {self.questions} a picture" if self.questions else "no picture"
        return f"{self.model}, {self.tuning}, {what}" + (f", {self.rows}" if self.rows != "questions" else "")

    @property
    def apart(self) -> str | None:
        """What this package is run with a second time."""
        if self.rows != "questions":
            return "ours, packed"
        return "ours, shared pictures" if self.questions > 1 else None


# Of the 135 M, by tokens a picture: batch, steps that are not timed, steps that are, turns.
SIZES = {16: (10, 1, 3, 2), 256: (5, 1, 2, 1), 576: (2, 1, 3, 1)}
CELLS = [Cell("embedded", tuning, 16, each, 20, 1, 4, 2) for tuning in ("lora", "full") for each in (1, 5)]
CELLS += [
    Cell("135 M", tuning, tokens, each, *size)
    for tokens, size in SIZES.items()
    for tuning in ("lora", "full")
    for each in (1, 5)
]
CELLS += [Cell("135 M", "lora", 16, 1, 10, 1, 4, 1, "captions"), Cell("135 M", "lora", 16, 0, 10, 1, 4, 1, "text")]


def write_rows(folder: Path, questions: list[Sample], cell: Cell, count: int, side: int) -> None:
    """So many rows as conversations in LLaVA's format, which every trainer reads."""
    folder.mkdir()
    samples = list(islice(cycle(questions), count))
    if cell.questions:
        samples = asked(questions, cell.questions, -(-count // cell.questions), side, folder)[:count]
    rows = conversations(samples)
    for split, chosen in {"train": rows, "val": rows[:1], "test": rows[:1]}.items():
        (folder / f"{split}.json").write_text(json.dumps(chosen), encoding="utf-8")


def run(name: str, settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A training run; or what went wrong in it."""
    out, said = folder / "seen.json", folder / "settings.json"
    out.unlink(missing_ok=True)
    said.write_text(json.dumps(settings | {"out": str(out), "folder": str(folder)}), encoding="utf-8")
    command = [sys.executable, str(Path(__file__).parent / "trainers.py"), name, str(said)]
    environment = os.environ | {"OMP_NUM_THREADS": str(settings["threads"]), "HF_HUB_OFFLINE": "1"}
    if name == "ours":
        environment[TUNABLES] = JOINED  # as tools/fit.py starts itself
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        return {"error": " ".join(done.stderr.split())[-300:]}
    seen: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return seen


def rates(seen: dict[str, Any], step: int) -> dict[str, float]:
    """Of a step, per CPU second and per second of the clock."""
    cpu, wall = (seen[clock][step] - seen[clock][step - 1] for clock in ("cpu", "wall"))
    return {
        "rows per second": seen["rows"][step] / cpu,
        "label tokens per second": seen["label_tokens"][step] / cpu,
        "rows per second of the clock": seen["rows"][step] / wall,
        "rows of the step": seen["rows"][step],
    }


def best(turns: list[dict[str, Any]], first: int) -> dict[str, Any]:
    """The fastest step of several runs, and the least memory."""
    failed = next((seen for seen in turns if "error" in seen), None)
    if failed is not None:
        return failed
    steps = [rates(seen, step) for seen in turns for step in range(first, len(seen["cpu"]))]
    if not steps:
        return {"error": f"{len(turns[0]['cpu'])} steps in all, of which {first} would not be timed"}
    fastest = max(steps, key=lambda rate: rate["rows per second"])
    peak = min(seen["peak_bytes"] for seen in turns)
    return fastest | {"peak_memory_bytes": peak, "first loss": turns[0]["losses"][0], "alone": turns[0]["alone"]}


def compared(found: dict[str, dict[str, Any]], cell: Cell) -> dict[str, Any]:
    """How many times as fast as the peers, the share of their memory, the aims, and which run is held to them."""
    result: dict[str, Any] = {}
    for mine in [name for name in found if name.startswith("ours") and "error" not in found[name]]:
        over: dict[str, Any] = {}
        for peer in [name for name in ("Trainer", "TRL") if "error" not in found.get(name, {"error": ""})]:
            ratios = {key: found[mine][key] / found[peer][key] for key in ("rows per second", "peak_memory_bytes")}
            over[peer] = {"times as fast": ratios["rows per second"], "of its memory": ratios["peak_memory_bytes"]}
        result[mine] = over
    aims: dict[str, Any] = {"of its memory": OF_ITS_MEMORY}
    if cell.rows == "questions" and (cell.questions == 1 or cell.tokens >= 256):
        aims["times as fast"] = OVER_TRAINER[cell.questions]
    held = cell.apart or "ours"
    return {"ratios": result, "aims": aims, "held to the aims": held}


def same_losses(found: dict[str, dict[str, Any]]) -> bool:
    """Whether the first losses of all trainers agree; shared and packed rows have theirs of the same rows apart."""
    there = [one["first loss"] for name, one in found.items() if "first loss" in one and name not in APART]
    apart = [abs(one["first loss"] - one["alone"]) for one in found.values() if one.get("alone") is not None]
    return max([max(there, default=float("inf")) - min(there, default=0.0), *apart]) <= SAME_LOSS


class Comparison:
    """The runs of a cell.

    Args:
        cell: What is run.
        weights: Folder of the model.
        side: Of its pictures, in pixels.
        samples: What is said in the rows.
        folder: For this cell alone.
        threads: Of a run.
    """

    def __init__(self, cell: Cell, weights: Path, side: int, samples: list[Sample], folder: Path, threads: int) -> None:
        self.cell, self.folder = cell, folder
        shared = {"weights": str(weights), "batch": cell.batch, "tuning": cell.tuning, "threads": threads}
        own = shared | {"rows": str(folder / "rows"), "options": OPTIONS}
        count = cell.batch * (cell.first + cell.steps)
        write_rows(folder / "rows", samples, cell, count, side)
        self.settings = {"ours": own, "Trainer": own, "TRL": own}
        if cell.apart is not None:
            # A step of shared or packed rows may hold several times as many.
            more_rows = 15 * -(-count // 5)
            write_rows(folder / "more_rows", samples, cell, more_rows, side)
            more = own | {"rows": str(folder / "more_rows"), "options": OPTIONS | APART[cell.apart]}
            self.settings = {"ours": own, cell.apart: more, "Trainer": own, "TRL": own}
        self.runs: dict[str, list[dict[str, Any]]] = {name: [] for name in self.settings}

    def turn(self, name: str) -> None:
        """Let one of them run; the peers in the order of this package."""
        first = self.runs["ours"][:1]
        order = first[0].get("order") if first else None
        trainer = name.partition(",")[0]
        if trainer == "ours" or order is not None:
            self.runs[name].append(run(trainer, self.settings[name] | {"order": order}, self.folder))

    def result(self) -> dict[str, Any]:
        """What was found, and the aims."""
        found = {name: best(runs, self.cell.first) for name, runs in self.runs.items() if runs}
        same = {"same first loss": same_losses(found)}
        return {"cell": asdict(self.cell), "trainers": found, **same, **compared(found, self.cell)}


def groups(only: str) -> list[list[Cell]]:
    """Cells that run at once: those that differ in what is tuned, or in what is said."""
    found: dict[Any, list[Cell]] = {}
    for cell in CELLS:
        if only in cell.name:
            alike = (cell.tokens, cell.questions) if cell.rows == "questions" else ()
            found.setdefault((cell.model, *alike), []).append(cell)
    return list(found.values())


def main() -> None:
    """Measure all cells and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", default="", help="Cells with this in their name.")
    parser.add_argument("--turns", type=int, default=0, help="Of every cell; 0 leaves it its own.")
    parser.add_argument("--threads", type=int, default=1, help="Of each run.")
    parser.add_argument("--at_once", type=int, default=2, help="Runs, always of the same trainer.")
    options = parser.parse_args()
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    report: dict[str, Any] = made_with([*PACKAGES, "trl", "accelerate"])
    report |= {"threads": options.threads, "runs at once": options.at_once, "cells": {}}
    embedded = Backbone(dtype="float32").load().processor
    sources: dict[str, list[Sample]] = {
        "questions": VQAv2().rows(embedded_root("vqav2"), "train2014"),
        "captions": COCOCaptions().rows(embedded_root("coco_captions"), "train2014"),
        "text": [row for row in ScienceQA().rows(embedded_root("scienceqa"), "train") if not row.images],
    }
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(options.at_once) as pool:
        for cells in groups(options.only):
            comparisons = []
            weights, side = EMBEDDED, 128
            if cells[0].model != "embedded":
                model, processor = random_model(cells[0].tokens, embedded)
                weights, side = Path(scratch) / "weights", model.config.vision_config.image_size
                model.save_pretrained(weights)
                processor.save_pretrained(weights)
                del model
            for cell in cells:
                folder = Path(tempfile.mkdtemp(dir=scratch))
                comparisons.append(Comparison(cell, weights, side, sources[cell.rows], folder, options.threads))
            for name in [*comparisons[0].settings] * (options.turns or cells[0].turns):
                list(pool.map(lambda one, name=name: one.turn(name), comparisons))
            for one in comparisons:
                report["cells"][one.cell.name] = one.result()
                sys.stderr.write(f"{one.cell.name}: {json.dumps(report['cells'][one.cell.name])}\n")
            report["load average after"] = os.getloadavg()
            if options.out is not None:  # what is done so far
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(f"{json.dumps(report, indent=1)}\n", encoding="utf-8")
    sys.stdout.write(f"{json.dumps(report, indent=1)}\n")


if __name__ == "__main__":
    main()
