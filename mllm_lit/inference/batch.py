"""Many questions of one's own, answered into a file while it goes on."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec

from mllm_lit.data.faults import DatasetError, Fault
from mllm_lit.data.preflight import check_images, check_rows
from mllm_lit.data.sample import Sample
from mllm_lit.errors import SettingError, in_range, writing
from mllm_lit.evaluation.records import SAFE
from mllm_lit.inference.run import Tuned
from mllm_lit.tasks.files import Key, Row, Text, convert, reason
from mllm_lit.tasks.places import records

Names = Annotated[list[Text], msgspec.Meta(min_length=1)]


Question = tuple[Sample, dict[str, Any]]
"""A question, and its row as it is."""


class Asked(Row):
    """A row of the file of questions."""

    question: Text
    id: Key | None = None
    image: Text | Names | None = None
    images: Text | Names | None = None


def read_questions(path: Path) -> list[Question]:
    """The questions of a file (JSON lines, JSON or parquet), and each row as it is.

    Names of pictures are relative to the file's folder.

    Raises:
        DatasetError: The file or a row of it cannot be read, or two rows have one id; every fault is named by its line.
    """
    if not path.is_file():
        raise DatasetError(f"--batch {path}: there is no such file (tried {path.absolute()}).")
    found: list[Question] = []
    faults: list[Fault] = []
    places: dict[str, str] = {}
    for place, row in records(path):
        try:
            asked: Asked = convert(row, Asked)
        except msgspec.ValidationError as error:
            faults.append(Fault(str(path), place, reason(error)))
            continue
        if asked.image is not None and asked.images is not None:
            faults.append(Fault(str(path), place, "the row has 'image' and 'images'; expected one of them"))
        given = asked.image if asked.image is not None else asked.images
        names = [given] if isinstance(given, str) else given or []
        name = place if asked.id is None else str(asked.id)
        if name in places:
            faults.append(Fault(str(path), place, f"has the id {name!r}, as row {places[name]} has"))
        places[name] = place
        pictures = tuple(path.parent / one for one in names)
        found.append((Sample.single_turn(name, asked.question, "?", pictures, ("?",), origin=f"{path}:{place}"), row))
    if faults:
        raise DatasetError.of(faults)
    return found


def questions_left(path: Path, out: Path) -> tuple[list[Question], int]:
    """The questions of a file, checked with their pictures, and how many of them are answered in ``out`` already.

    Raises:
        DatasetError: See :func:`read_questions`; or a picture cannot be read.
        SettingError: ``out`` holds something else.
    """
    asked = read_questions(path)
    samples = [sample for sample, _ in asked]
    check_rows(samples, str(path))
    done = answered(out, samples)
    check_images(samples[done:])
    return asked, done


def answer_questions(
    tuned: Tuned, asked: list[Question], done: int, out: Path, size: int = 8, max_new_tokens: int = 128
) -> None:
    """Answer questions, greedily, behind those that are answered.

    The answers are JSON lines: each row as it is, with its ``id`` and an ``answer``. They are written batch by batch,
    so that one can go on where it was stopped.

    Args:
        tuned: The model.
        asked: See :func:`questions_left`; ``done``, too.
        done: So many are left out.
        out: Added to.
        size: Questions in a batch.
        max_new_tokens: Longest answer.

    Raises:
        FormatError: A question does not fit into the model's context.
    """
    import torch

    from mllm_lit.answers import greedy_answers
    from mllm_lit.backbones.load import context
    from mllm_lit.data.collate import Collate
    from mllm_lit.progress import progress_bar

    in_range("--batch_size", size, 1)
    in_range("--max_new_tokens", max_new_tokens, 1)
    net: Any = tuned.module
    collate = Collate(tuned.loaded.processor, context(tuned.loaded), with_prompt=True)
    device = next(net.parameters()).device
    with progress_bar(total=len(asked), initial=done, desc="answered", unit=" questions") as bar:
        for start in range(done, len(asked), size):
            part = asked[start : start + size]
            batch = collate([sample for sample, _ in part]).to(device)
            with torch.inference_mode():
                texts = greedy_answers(net, collate, batch, max_new_tokens)
            lines = "".join(lines_of(part, texts))
            with writing(out, len(lines.encode()), SAFE), out.open("a", encoding="utf-8") as file:
                file.write(lines)
            bar.update(len(part))


def lines_of(part: list[Question], texts: list[str]) -> Iterator[str]:
    """The lines of some answers."""
    for (sample, row), text in zip(part, texts, strict=True):
        plain = {name: value for name, value in row.items() if not holds_bytes(value)}
        yield json.dumps(plain | {"id": sample.id, "answer": text}, ensure_ascii=False) + "\n"


def holds_bytes(value: Any) -> bool:
    """Whether a cell of a table is, or has in it, what JSON cannot say."""
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return isinstance(value, bytes) or any(holds_bytes(one) for one in inside)


def answered(out: Path, samples: list[Sample]) -> int:
    """How many of the questions are answered in a file already; a line that was cut off is taken out of it.

    Raises:
        SettingError: The file does not begin with answers to these questions.
    """
    if not out.exists():
        return 0
    text = out.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    try:
        ids = [str(json.loads(line)["id"]) for line in whole.split("\n")[:-1]]
    except (ValueError, KeyError, TypeError):
        ids = [""]
    if ids != [sample.id for sample in samples[: len(ids)]]:
        raise SettingError(
            f"--out {out}: there is such a file, and it does not hold answers to these questions. Choose another name, "
            "or remove it."
        )
    if whole != text:
        out.write_text(whole, encoding="utf-8")
    return len(ids)
