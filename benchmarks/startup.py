"""Seconds from the start of ``tools/fit.py`` to its first line, its settings, its data, its backbone, its first step;
and of ``tools/fit.py --PART.help``, which prints the options of a part.

    python benchmarks/startup.py --out benchmarks/results/startup.json

For the embedded run, and for 12,000 synthetic rows in ScienceQA's layout, half of them with a picture, whose pictures
are checked. Wall time as a user sees it, files in the system's cache, the run with the fewest seconds of ``--repeat``.
The evaluation before training is cut to one batch of 512 tokens a set and stated by itself: ``evaluation_before_s``
lies between ``ready_s`` and ``first_step_s``, the start of the scorers in it.

Of the JSON, ``runs`` has a flat record of seconds for each run: ``first_line_s``, ``settings_read_s``,
``data_read_s`` (rows read and pictures checked), ``backbone_loaded_s``, ``ready_s`` (lengths measured, optimizer made,
report printed), ``first_step_s`` (its beginning) and ``evaluation_before_s``. ``help_s`` has those of each part's help.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report import write_report

REPOSITORY = Path(__file__).parents[1]
ROWS = {"train": 12_000, "val": 500, "test": 500}
MARK = "startup mark "


def marks() -> type:
    """A callback that tells when it is made, and when the data, the backbone and the first step are there."""
    import lightning as L

    def mark(name: str) -> None:
        sys.stderr.write(f"\n{MARK}{name} {time.time()}\n")
        sys.stderr.flush()

    class Marks(L.Callback):
        """Stops the process at the first step."""

        def __init__(self) -> None:
            mark("settings_read_s")

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            mark("data_read_s")
            load = pl_module.configure_model

            def loaded() -> None:
                load()
                mark("backbone_loaded_s")

            pl_module.configure_model = loaded

        def on_train_start(self, *args: Any) -> None:
            mark("ready_s")

        def on_train_batch_start(self, *args: Any) -> None:
            mark("first_step_s")
            os._exit(0)

    return Marks


def __getattr__(name: str) -> Any:
    """``startup.Marks`` for a run's settings; this process itself imports no Lightning."""
    if name != "Marks":
        raise AttributeError(name)
    made = marks()
    made.__module__, made.__qualname__ = __name__, name
    globals()[name] = made
    return made


def write_release(root: Path) -> None:
    """ScienceQA's files, as its authors lay them out."""
    from PIL import Image, ImageDraw

    picture = root / "picture.png"
    drawn = Image.new("RGB", (400, 300), "white")
    for i in range(60):
        ImageDraw.Draw(drawn).ellipse((6 * i, 4 * i, 6 * i + 30, 4 * i + 30), fill=(4 * i, 255 - 4 * i, 128))
    drawn.save(picture)
    problems: dict[str, Any] = {}
    splits: dict[str, list[str]] = {split: [] for split in ROWS}
    for split, count in ROWS.items():
        for i in range(count):
            pid = str(len(problems) + 1)
            splits[split].append(pid)
            problems[pid] = {
                "question": f"Which of these {i % 97} things is named in the text above?",
                "choices": ["a mixture", "an elementary substance", "a compound"],
                "answer": i % 3,
                "hint": "Read the passage and look at the picture." if i % 4 else "",
                "image": "image.png" if i % 2 else None,
                "task": "closed choice",
                "grade": f"grade{1 + i % 12}",
                "subject": "natural science",
                "topic": "chemistry",
                "category": "c",
                "skill": "s",
                "lecture": "Matter is made of atoms. " * 8,
                "solution": "Look at the picture.",
                "split": split,
            }
            if i % 2:
                folder = root / "images" / split / pid
                folder.mkdir(parents=True)
                (folder / "image.png").write_bytes(picture.read_bytes())
    (root / "problems.json").write_text(json.dumps(problems), encoding="utf-8")
    (root / "pid_splits.json").write_text(json.dumps(splits), encoding="utf-8")


def run(words: list[str], output: Path) -> dict[str, float]:
    """Seconds of one run, by mark."""
    command = [sys.executable, "tools/fit.py", "--config", "configs/scienceqa_lora.yaml", *words]
    command += [
        "--trainer.limit_test_batches",
        "1",
        "--data.eval_tokens",
        "512",
        "--trainer.enable_progress_bar",
        "false",
    ]
    command += ["--trainer.callbacks+", "startup.Marks", "--output", str(output)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "benchmarks")])}
    env.pop("GLIBC_TUNABLES", None)
    begin, found, said = time.time(), {}, []
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as going:
        assert going.stderr is not None
        for line in map(bytes.decode, going.stderr):
            found.setdefault("first_line_s", time.time() - begin)
            said.append(line)
            if line.startswith(MARK):
                name, at = line.removeprefix(MARK).split()
                found.setdefault(name, float(at) - begin)
    if "first_step_s" not in found:
        raise RuntimeError("".join(said))
    found["evaluation_before_s"] = found["first_step_s"] - found["ready_s"]
    return {name: round(value, 2) for name, value in found.items()}


def help_of(part: str) -> float:
    """Seconds until the options of a part are printed."""
    begin = time.time()
    command = [sys.executable, "tools/fit.py", f"--{part}.help"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    subprocess.run(command, cwd=REPOSITORY, env=env, check=True, capture_output=True)
    return round(time.time() - begin, 2)


def main() -> None:
    """Measure both runs and every part's help, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    load = os.getloadavg()
    with tempfile.TemporaryDirectory() as place:
        root, output = Path(place) / "release", Path(place) / "logs"
        root.mkdir()
        write_release(root)
        given = {
            "embedded": [],
            "scienceqa_12000_rows": ["--data.root", str(root), "--data.sources", "null", "--data.check_images", "true"],
        }
        runs = {}
        for name, words in given.items():
            runs[name] = min((run(words, output) for _ in range(options.repeat)), key=lambda one: one["first_step_s"])
            sys.stderr.write(f"{name}: {json.dumps(runs[name])}\n")
    from mllm_lit.part_help import PARTS
    from mllm_lit.summary import commit

    report = {
        "runs": runs,
        "help_s": {part: min(help_of(part) for _ in range(options.repeat)) for part in PARTS},
        "rows": ROWS,
        "repeat": options.repeat,
        "cores": os.cpu_count(),
        "load average": {"before": load, "after": os.getloadavg()},
        "commit": commit(),
        "device": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "lightning", "transformers", "peft", "jsonargparse")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
