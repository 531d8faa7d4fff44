"""Whether a model looks up which letter stands before a choice: exercises that need no knowledge, by number of choices.

    python tools/build_smollm2.py letters --out logs/letters
    python benchmarks/letters.py embedded smollm2_llava --data logs/letters --out benchmarks/results/letters.json

What is named is a backbone or the directory of a run. The validation exercises ask for words that those for training do
not have. Answers of the kind ``letter`` are one; of ``text``, the choice behind a letter, or all choices repeated.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from machine import made_with
from report import write_report

REPOSITORY = Path(__file__).parents[1]
CHOICE = re.compile(r"\b[A-E]\.")


def answers(model: str, data: Path, samples: int, out: Path) -> list[dict[str, Any]]:
    """What a model says to the exercises."""
    named = ["--run", model] if Path(model).is_dir() else ["--backbone", model]
    task = ["--data", "conversations", "--data.root", str(data.absolute()), "--data.test_split", "val"]
    limits = ["--data.max_eval_samples", str(samples), "--data.sources", "null", "--data.name", "letters"]
    command = [sys.executable, "tools/evaluate.py", *named, *task, *limits, "--out", str(out)]
    subprocess.run(command, cwd=REPOSITORY, check=True)
    return [json.loads(line) for line in (out / "letters.jsonl").read_text(encoding="utf-8").splitlines()]


def shares(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Per cent right, by kind and number of choices."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        kind = "letter" if len(row["answer"]) == 1 else "text"
        groups.setdefault(f"{kind}, {len(CHOICE.findall(row['question']))} choices", []).append(row["score"])
    return {name: {"samples": len(own), "right": 100 * sum(own) / len(own)} for name, own in sorted(groups.items())}


def main() -> None:
    """Ask every model and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder that build_smollm2.py letters has written")
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = {"machine": made_with(), "models": {}}
    for model in options.models:
        with tempfile.TemporaryDirectory() as place:
            rows = answers(model, options.data, options.samples, Path(place))
        found["models"][Path(model).name] = shares(rows)
    write_report(found, options.out)


if __name__ == "__main__":
    main()
