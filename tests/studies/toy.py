"""A study of a fake tool: what it takes to plan, run and report one without a model."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mllm_lit.studies import Plan, Store, Study, Tools, read_study

STUDY: dict[str, Any] = {
    "name": "toy",
    "question": "Which one is it?",
    "options": {"config": "base.yaml", "data.max_samples": 32},
    "axes": {
        "method": {
            "full": {"model.adapter": "full.yaml"},
            "lora": {"model.adapter": "lora.yaml", "rates": [0.5]},
            "wise_ft": {"merge": "wise_ft", "of": "full", "point": "alpha 0.50"},
        },
        "seed": [1, 2],
    },
    "rate": {
        "rates": [0.1, 0.01, 0.001],
        "by": ["method"],
        "options": {"data.test_split": "val", "seed_everything": 7},
    },
}

TOOL = '''
"""Stands in for tools/fit.py and tools/merge.py: leaves their files, and what it was told."""
import json, os, signal, sys, time
from pathlib import Path

words = sys.argv[1:]
if Path(sys.argv[0]).name == "merge.py":
    folder = Path(words[0]) / "merges" / words[2]
    folder.mkdir(parents=True)
    points = [{"label": f"alpha {i / 10:.2f}", "target": 10 + i, "sources": {"s": 90 - i}, "tradeoff": {"H": 40 + i},
               "scores": {"s": {"nll": i / 10}}}
              for i in range(11)]
    (folder / "merge.json").write_text(json.dumps({"points": points}))
    sys.exit()
given = dict(zip(words[::2], words[1::2], strict=True))
folder = Path(given["--output"]) / given["--experiment"] / given["--version"]
folder.mkdir(parents=True, exist_ok=True)
began = (folder / "checkpoints" / "last.ckpt").exists()
if began:
    print("goes on")
with open(folder.parent / "calls", "a") as calls:
    calls.write(json.dumps(given | {"threads": os.environ.get("OMP_NUM_THREADS"), "pid": os.getpid()}) + "\\n")


def save(number, frame):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "last.ckpt").touch()
    print("saved")
    sys.exit(0)


signal.signal(signal.SIGTERM, save)
if given["--seed_everything"] in given.get("--fails", ""):
    print("what went wrong")
    sys.exit(3)
if not began:
    waits = given.get("--waits_for")
    while waits and not Path(waits).exists():
        time.sleep(0.01)
rate = float(given["--model.adapter.lr"])
target = {0.1: 40, 0.01: 50, 0.001: 50, 0.5: 45}[rate] + int(given["--seed_everything"])
row = {"before": 90.0, "after": 60.0, "forgetting": 30.0, "nll_after": 1.0}
summary = {"target": {"before": 10.0, "after": target}, "sources": {"s": row}, "tradeoff": {"H": 50.0}}
(folder / "part").write_text(json.dumps(summary))
(folder / "part").rename(folder / "summary.json")  # whole, as mllm_lit.summary does it
'''


def told(words: Sequence[str]) -> dict[str, Any]:
    """What a result depends on, as it stands in the words."""
    settings = {word[2:]: yaml.safe_load(value) for word, value in zip(words[::2], words[1::2], strict=True)}
    target = {"task": {"class_path": settings.get("data.task", "")}}
    return {"settings": settings, "data": "d", "code": "c", "target": target}


def write(path: Path, **changes: Any) -> Path:
    """The study, some keys of it changed; ``None`` takes one out."""
    content = {key: value for key, value in (STUDY | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def study(folder: Path, **changes: Any) -> Study:
    """The same, read."""
    return read_study(write(folder / "toy.yaml", **changes))


def tools(folder: Path) -> Tools:
    """The fake tool, in place of both."""
    folder.mkdir(exist_ok=True)
    for name in ("fit", "merge"):
        (folder / f"{name}.py").write_text(TOOL)
    return Tools(folder)


def planned(folder: Path, **changes: Any) -> tuple[Plan, Store]:
    """The plan of a changed study, over runs in a folder."""
    store = Store(folder / "runs")
    return Plan(study(folder, **changes), told, store.summary), store


def calls(store: Store) -> list[dict[str, str]]:
    """What the fake tool was called with."""
    file = store.folder / "calls"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def alive(process: int) -> bool:
    """Whether there is such a process that has not ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


RUNNER = f"""
import sys
from pathlib import Path
sys.path.insert(0, {os.getcwd()!r})
from mllm_lit.studies import Local, Stopped
from tests.studies.toy import planned, tools
import json
folder = Path(sys.argv[1])
plan, store = planned(folder, **json.loads(sys.argv[2]))
try:
    Local(plan, store, tools(folder / "tools"), jobs=2).run()
except Stopped:
    sys.exit("stopped")
"""
"""A runner in a process of its own, for what is killed."""
PYTHON = sys.executable
