"""Writes ``conversations``: the questions on a picture of ``vqav2`` as one conversation, in LLaVA's format."""

import json
import shutil
from itertools import groupby
from pathlib import Path
from typing import Any

from mllm_lit.data.sample import Sample
from mllm_lit.tasks import VQAv2


def write_conversations(folder: Path, vqa: Path) -> None:
    """Write three splits; pictures stay where they are.

    Args:
        folder: Of the set.
        vqa: Of the set ``vqav2``, beside it.
    """
    task = VQAv2(prompt="{question}")
    held_out = conversations(task.rows(vqa, "val2014"), vqa)
    splits = {"train": conversations(task.rows(vqa, "train2014"), vqa), "val": held_out[::2], "test": held_out[1::2]}
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        text = "[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n"
        (folder / f"{split}.json").write_text(text, encoding="utf-8")
    shutil.copy(vqa / "LICENSES.md", folder)


def conversations(samples: list[Sample], vqa: Path) -> list[dict[str, Any]]:
    """A conversation for each picture, of the questions that follow one another."""
    rows = []
    for images, asked in groupby(samples, key=lambda sample: sample.images):
        image = Path(str(images[0]))
        turns = [
            {"from": speaker, "value": text}
            for number, sample in enumerate(asked)
            for speaker, text in (
                ("human", ("<image>\n" if number == 0 else "") + sample.question),
                ("gpt", sample.answer),
            )
        ]
        name = f"../{vqa.name}/{image.relative_to(vqa).as_posix()}"
        rows.append({"id": image.stem, "image": name, "conversations": turns})
    return rows
