"""The texts that come with the package, and their words."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

CORPUS = ("coco_captions", "gqa", "iconqa", "scienceqa", "vqav2")
"""Sets whose words the model is to know."""


def corpus(data: Path) -> list[str]:
    """Every text of five sets, for the tokenizer: words are not facts, so the targets' are among them.

    Args:
        data: The folder that holds those of :data:`CORPUS`, and maybe others.
    """
    texts: list[str] = []
    folders = [folder for name in CORPUS for folder in (data / name, *(data / name).glob("annotations"))]
    folders += [data / "iconqa" / "iconqa_data"]
    for path in sorted(path for folder in folders for path in folder.glob("*.json")):
        _collect(json.loads(path.read_text(encoding="utf-8")), texts)
    return texts


def words_of(texts: Sequence[str]) -> list[str]:
    """The distinct words of some texts."""
    return sorted({word for text in texts for word in re.findall(r"[A-Za-z]{3,}", text)})


def _collect(value: object, texts: list[str]) -> None:
    if isinstance(value, dict):
        for key, entry in value.items():
            if key in ("question", "answer", "caption", "solution", "hint") and isinstance(entry, str):
                texts.append(entry)
            elif key == "choices":
                # As they stand in a prompt: without a space ahead in ScienceQA's, with one in IconQA's.
                texts.extend(f"A.{choice} {choice}" for choice in entry)
            else:
                _collect(entry, texts)
    elif isinstance(value, list):
        for entry in value:
            _collect(entry, texts)
