"""Reading VQAv2: declared types against the standard library's parser and checks by hand, in turn, in one process.

python benchmarks/reading.py --out benchmarks/results/reading.json
"""

import argparse
import json
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report import write_report

from mllm_lit.data.sample import Sample
from mllm_lit.summary import commit
from mllm_lit.tasks import VQAv2
from mllm_lit.tasks.vqa import majority


def write(root: Path, rows: int) -> None:
    """A release of so many questions, ten answers each, without pictures."""
    answers = [{"answer": "red", "answer_confidence": "yes", "answer_id": i} for i in range(10)]
    asked = [{"image_id": i // 5, "question": f"What color is thing {i}?", "question_id": i} for i in range(rows)]
    said = [
        {"question_id": i, "image_id": i // 5, "question_type": "what", "answer_type": "other",
         "multiple_choice_answer": "red", "answers": answers}
        for i in range(rows)
    ]  # fmt: skip
    (root / "val2014").mkdir()
    (root / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps({"questions": asked}))
    (root / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({"annotations": said}))


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose keys differ."""
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key appears twice")
    return content


def by_hand(root: Path) -> list[Sample]:
    """The same rows with ``json`` and a check of each field that is used, as the readers did it before."""
    files = ("v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json")
    asked, said = (json.loads((root / f).read_bytes().decode(), object_pairs_hook=unique) for f in files)
    annotations: dict[Any, Any] = {}
    for entry in said["annotations"]:
        if not isinstance(entry, dict) or entry["question_id"] in annotations:
            raise ValueError
        annotations[entry["question_id"]] = entry
    task, rows = VQAv2(), []
    for number, entry in enumerate(asked["questions"]):
        annotation = annotations[entry["question_id"]]
        answers = [answer["answer"] for answer in annotation["answers"]]
        question = entry["question"]
        if annotation["image_id"] != entry["image_id"] or not answers or not isinstance(question, str):
            raise ValueError
        if not question.strip() or not all(isinstance(answer, str) for answer in answers):
            raise ValueError
        rows.append(
            Sample.single_turn(
                str(entry["question_id"]),
                task.ask(question=question.strip()),
                annotation.get("multiple_choice_answer") or majority(answers),
                (root / "val2014" / f"COCO_val2014_{entry['image_id']:012d}.jpg",),
                tuple(answers),
                meta={"answer_type": annotation["answer_type"], "question_type": annotation["question_type"]},
                origin=f"{root / files[0]}:{number}",
            )
        )
    return rows


def main() -> None:
    """Time both and write the ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    seconds: dict[str, list[float]] = {"declared": [], "by hand": []}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write(root, options.rows)
        assert VQAv2().rows(root, "val2014") == by_hand(root)
        for _ in range(options.repeat):
            for name, read in (("declared", lambda: VQAv2().rows(root, "val2014")), ("by hand", lambda: by_hand(root))):
                start = time.perf_counter()
                read()
                seconds[name].append(time.perf_counter() - start)
    report = {
        "rows": options.rows, "seconds": seconds, "speedup": min(seconds["by hand"]) / min(seconds["declared"]),
        "commit": commit(), "device": f"{platform.machine()}, one thread",
        "versions": {"python": platform.python_version(), "msgspec": version("msgspec")},
    }  # fmt: skip
    write_report(report, options.out)


if __name__ == "__main__":
    main()
