"""What sharing a picture's prefill saves where answers are evaluated: NLL and greedy answer of every row.

    python benchmarks/evaluation.py --out benchmarks/results/evaluation.json

Three ways take turns in one process: a row at a time with ``generate`` and a second pass for the NLL (as LLaVA's
scripts ask), batches of whole rows with every picture encoded once, and one prefill per picture. The embedded model
runs on its own sets with as many questions a picture as they have, up to 16 new tokens; a random model of 135 M
parameters (SmolLM2's shape, a vision encoder of four narrow blocks) on questions of the embedded VQAv2 and captions
of its COCO set, with so many tokens and questions a picture. Random weights end no answer, so as many tokens are
generated as the true answers have on average. Times are CPU seconds of one thread (what else the machine does counts
little), the least of the repetitions; a slow way is timed on the first of the rows that the others run.
"""

import argparse
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from models import asked, random_model
from report import write_report

from mllm_lit.answers import Answers, answer_nll, answers_of_whole_rows, greedy_answers
from mllm_lit.backbones import Backbone
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import Sample
from mllm_lit.evaluation.prefill import SharedCollate, answers_from_shared_pictures, shares_pictures
from mllm_lit.seed import run_seed
from mllm_lit.summary import commit
from mllm_lit.tasks import GQA, COCOCaptions, ScienceQA, VQAv2, embedded_root

EVALUATED: dict[str, tuple[Any, str]] = {
    "vqav2": (VQAv2, "val2014"),
    "gqa": (GQA, "testdev_balanced"),
    "coco_captions": (COCOCaptions, "val2014"),
    "scienceqa": (ScienceQA, "test"),
}
"""Embedded sets and a split of each."""
QUESTIONS = {1: "captions", 5: "VQAv2", 30: "VQAv2"}
"""How many a picture, and of which set: captioning's share, VQAv2's, GQA's."""
OVER_WHOLE_ROWS = {1: 1.8, 5: 4.0, 30: 10.0}
"""The aim at 576 tokens a picture, by questions a picture."""
OVER_ONE_BY_ONE = 10.0
"""The aim at 135 M."""
# Tokens and questions a picture: rows for each of the three ways, and the size of a batch.
SETTINGS: dict[tuple[int, int], tuple[tuple[int, int, int], int]] = {
    (16, 1): ((8, 32, 32), 32),
    (16, 5): ((8, 40, 40), 40),
    (16, 30): ((8, 30, 60), 60),
    (256, 1): ((3, 16, 16), 16),
    (256, 5): ((3, 10, 20), 20),
    (256, 30): ((3, 10, 60), 60),
    (576, 1): ((2, 6, 6), 6),
    (576, 5): ((2, 5, 10), 10),
    (576, 30): ((2, 5, 30), 30),
}


def one_by_one(model: Any, collate: Collate, rows: Sequence[Sample], new: int) -> Answers:
    """A row at a time, the pictures encoded in each pass."""
    found = Answers([], [], [])
    for row in rows:
        batch = collate([row]).to(model.device)
        found.texts.extend(greedy_answers(model, collate, batch, new))
        with torch.no_grad():
            nll, counts = answer_nll(model, batch)
        found.nll.extend(nll.tolist())
        found.tokens.extend(counts.tolist())
    return found


def in_batches(
    make: Callable[[list[Sample]], Any], run: Callable[[Any], Answers], rows: Sequence[Sample], size: int, device: Any
) -> Answers:
    """Batches of so many rows."""
    found = Answers([], [], [])
    for start in range(0, len(rows), size):
        part = run(make(list(rows[start : start + size])).to(device))
        for all_rows, more in zip(vars(found).values(), vars(part).values(), strict=True):
            all_rows.extend(more)
    return found


def apart(some: Answers, others: Answers) -> float:
    """Largest relative difference between the NLL of rows that both have."""
    return max(abs(a - b) / b for a, b in zip(some.nll, others.nll, strict=False))


def measure(
    model: Any,
    processor: Any,
    rows: Sequence[Sample],
    counts: tuple[int, int, int],
    size: int,
    new: int,
    repeat: int,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, Any]:
    """Let the three ways take turns on the first so many of the rows each."""
    collate = Collate(processor, with_prompt=True)
    if not shares_pictures(model, collate):
        raise RuntimeError(f"{type(model).__name__} does not share pictures.")
    shared = SharedCollate(collate)
    ways: dict[str, Callable[[Sequence[Sample]], Answers]] = {
        "one by one": lambda rows: one_by_one(model, collate, rows, new),
        "whole rows": lambda rows: in_batches(
            collate, lambda batch: answers_of_whole_rows(model, collate, batch, new), rows, size, model.device
        ),
        "one prefill": lambda rows: in_batches(
            shared, lambda batch: answers_from_shared_pictures(model, collate, batch, new), rows, size, model.device
        ),
    }
    seconds: dict[str, float] = {}
    answers: dict[str, Answers] = {}
    for _ in range(repeat):
        for (name, way), count in zip(ways.items(), counts, strict=True):
            begin = clock()
            answers[name] = way(rows[:count])
            taken = (clock() - begin) / count
            seconds[name] = min(taken, seconds.get(name, taken))
    alone, whole, mine = answers.values()
    per = {name: 1 / value for name, value in seconds.items()}
    return {
        "rows per second": per,
        "over one by one": per["one prefill"] / per["one by one"],
        "over whole rows": per["one prefill"] / per["whole rows"],
        "rows": dict(zip(ways, counts, strict=True)),
        "batch": size,
        "new tokens": new,
        "answers unlike those one by one": sum(a != b for a, b in zip(mine.texts, alone.texts, strict=False)),
        "answers unlike those of whole rows": sum(a != b for a, b in zip(mine.texts, whole.texts, strict=False)),
        "largest relative difference of an NLL": {
            "to one by one": apart(mine, alone),
            "to whole rows": apart(mine, whole),
            "of whole rows to one by one": apart(whole, alone),
        },
    }


def embedded_rows(name: str, count: int) -> list[Sample]:
    """The first rows of an embedded set that is not trained on."""
    task, split = EVALUATED[name]
    return list(task().rows(embedded_root(name), split))[:count]


def average(processor: Any, rows: Sequence[Sample]) -> int:
    """Tokens of an answer, its end among them."""
    chat = Collate(processor).format
    return round(sum(sum(chat.tokens(chat.render(row))[1]) for row in rows) / len(rows))


def main() -> None:
    """Measure all settings and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("PL_GLOBAL_SEED", "42")
    load = os.getloadavg()
    loaded = Backbone(dtype="float32").load()
    report: dict[str, Any] = {"embedded model": {}, "135 M": {}}
    for name in EVALUATED:
        rows = embedded_rows(name, 64)
        found = measure(loaded.model.eval(), loaded.processor, rows, (64, 64, 64), 64, 16, options.repeat)
        pictures = {row.images for row in rows if row.images}
        report["embedded model"][name] = found | {
            "rows a picture": sum(bool(row.images) for row in rows) / len(pictures)
        }
    sources = {"captions": embedded_rows("coco_captions", 64), "VQAv2": embedded_rows("vqav2", 64)}
    with tempfile.TemporaryDirectory() as folder:
        for (tokens, each), (counts, size) in SETTINGS.items():
            model, processor = random_model(tokens, loaded.processor)
            rows = asked(
                sources[QUESTIONS[each]], each, counts[-1] // each, model.config.vision_config.image_size, Path(folder)
            )
            found = measure(model, processor, rows, counts, size, average(processor, rows), options.repeat)
            aim = {"one by one": OVER_ONE_BY_ONE} | ({"whole rows": OVER_WHOLE_ROWS[each]} if tokens == 576 else {})
            reached = {over: {"aim": x, "reached": found[f"over {over}"] >= x} for over, x in aim.items()}
            key = f"{tokens} tokens, {each} a picture"
            report["135 M"][key] = found | {"questions": QUESTIONS[each], "aims": reached}
            sys.stderr.write(f"{key}: {json.dumps(report['135 M'][key])}\n")
    report |= {
        "repeat": options.repeat,
        "seed": run_seed(),
        "dtype": "float32",
        "load average": {"before": load, "after": os.getloadavg()},
        "commit": commit(),
        "device": f"{platform.machine()}, one thread",
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "versions": {name: version(name) for name in ("torch", "transformers")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
