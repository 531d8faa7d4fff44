"""Questions of VLMEvalKit (https://github.com/open-compass/VLMEvalKit) answered into a file that its scorers take.

A data set of it is a TSV, with a row a question and its picture in base64. What a model says is the same table without
the pictures and with ``prediction``, named ``MODEL_DATASET.tsv``. Questions are asked as ``ImageBaseDataset``,
``ImageMCQDataset``, ``ImageVQADataset`` and ``MMMUDataset`` do it.
"""

import ast
import base64
import csv
import re
import string
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.prompt import chat_format
from mllm_lit.data.sample import EncodedImage
from mllm_lit.errors import writing
from mllm_lit.inference.ask import answers_to, read_messages
from mllm_lit.inference.run import Tuned
from mllm_lit.progress import progress_bar

Row = dict[str, str]
NAME = "mllm_lit"
SHORT = ("OCRVQA_", "TextVQA_", "DocVQA_", "InfoVQA_", "ChartQA_", "GQA_")
"""Beginnings of the data sets of ``ImageVQADataset``, which asks for a word or phrase."""
MISSING = ("", "nan")
"""An empty cell, as pandas reads and writes it."""
REFERS = 64
"""A picture of so many characters at most is the index of the row that has it."""


def read_rows(path: Path) -> list[Row]:
    """The rows of a data set; those without a picture are left out where others have one.

    Raises:
        DatasetError: There is no such file, or a column is missing.
    """
    if not path.is_file():
        raise DatasetError(f"There is no file {path} (tried {path.absolute()}); expected a TSV of VLMEvalKit.")
    csv.field_size_limit(sys.maxsize)
    with path.open(encoding="utf-8", newline="") as file:
        rows = [dict(row) for row in csv.DictReader(file, delimiter="\t")]
    columns = set(rows[0]) if rows else set()
    missing = sorted({"index", "question"} - columns) or ([] if columns & {"image", "image_path"} else ["image"])
    if missing:
        raise DatasetError(f"{path} has no column {', '.join(missing)}; there are: {', '.join(sorted(columns))}.")
    return [row for row in rows if "image" not in row or row["image"] not in MISSING]


def listed(cell: str) -> list[str]:
    """A cell that holds one thing, or a Python list of several."""
    return [str(one) for one in ast.literal_eval(cell)] if cell.startswith("[") else [cell]


def pictures_of(row: Row, by_index: dict[str, Row], folder: Path) -> list[Any]:
    """Encoded pictures, or the files of a row."""
    if "image" not in row:
        return [folder / name for name in listed(row["image_path"])]
    cell = row["image"] if len(row["image"]) > REFERS else by_index[row["image"]]["image"]
    shown = listed(cell)
    return [EncodedImage(base64.b64decode(one), f"{row['index']}-{i}") for i, one in enumerate(shown)]


def text_of(row: Row, name: str) -> str:
    """The question as VLMEvalKit puts it, with the options where the row has some."""
    letters = [letter for letter in string.ascii_uppercase if row.get(letter, "") not in MISSING]
    if not letters:
        return row["question"] + "\nAnswer the question using a single word or phrase." * name.startswith(SHORT)
    hint = "" if row.get("hint", "") in MISSING else f"Hint: {row['hint']}\n"
    options = "".join(f"{letter}. {row[letter]}\n" for letter in letters)
    return (
        f"{hint}Question: {row['question']}\nOptions:\n{options}"
        "Please select the correct answer from the options above. \n"
    )


def content_of(text: str, pictures: list[Any], name: str) -> Iterator[dict[str, Any]]:
    """Pictures and text, the pictures of MMMU where its text names them."""
    named = re.split(r"<image (\d+)>", text) if "MMMU" in name else [text]
    if len(named) == 1:
        yield from ({"type": "image", "url": picture} for picture in pictures)
    for i, part in enumerate(named):
        if i % 2:
            yield {"type": "image", "url": pictures[int(part) - 1]}
        elif part:
            yield {"type": "text", "text": part}


def answer(
    tuned: Tuned,
    path: Path,
    out: Path,
    batch_size: int = 8,
    max_new_tokens: int = 512,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Path:
    """Answer a data set greedily.

    Args:
        tuned: The model.
        path: ``DATASET.tsv``.
        out: Folder for ``mllm_lit_DATASET.tsv``.
        batch_size: Most questions that are answered at once.
        max_new_tokens: Longest answer.
        context: Around every forward pass.

    Returns:
        The file written.

    Raises:
        DatasetError: The file cannot be used.
        FormatError: A question cannot be put into the model's chat format.
    """
    rows, form, name = read_rows(path), chat_format(tuned.loaded.processor), path.stem
    by_index = {row["index"]: row for row in rows}
    said: list[str] = []
    for start in progress_bar(range(0, len(rows), batch_size), desc=name, unit=" batches", leave=False):
        asked = []
        for row in rows[start : start + batch_size]:
            content = content_of(text_of(row, name), pictures_of(row, by_index, path.parent), name)
            asked.append(read_messages(form, [{"role": "user", "content": [*content]}], f"{path}:{row['index']}"))
        said += answers_to(tuned, form, asked, {"max_new_tokens": max_new_tokens}, context)
    file = out / f"{NAME}_{name}.tsv"
    columns = [*(column for column in rows[0] if column != "image"), "prediction"]
    with writing(file):
        out.mkdir(parents=True, exist_ok=True)
        with file.open("w", encoding="utf-8", newline="") as opened:
            table = csv.DictWriter(opened, columns, "", "ignore", "excel-tab", quoting=csv.QUOTE_ALL)
            table.writeheader()
            table.writerows({**row, "prediction": text} for row, text in zip(rows, said, strict=True))
    return file
