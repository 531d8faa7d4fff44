"""Writes the target ``iconqa``: counting and comparing icons, in the format of IconQA's release."""

import random
from pathlib import Path
from typing import Any

from tqdm import tqdm

from embedded.concepts import ICONS, Concept
from embedded.licences import write_licences
from embedded.pictures import Renderings, save_png, several
from embedded.sources import write_json

SIZES = {"train": 500, "val": 120, "test": 250}
"""Questions per sub-task."""
KINDS = ("choose_txt", "fill_in_blank")


def write_iconqa(root: Path, renderings: Renderings, seed: int) -> None:
    """``iconqa_data/`` with ``problems.json``, ``pid_splits.json`` and a folder per question.

    The folder of a question, ``iconqa/{split}/{kind}/{pid}``, repeats it as ``data.json`` beside ``image.png``.
    """
    rng = random.Random(f"{seed} iconqa")
    base = root / "iconqa_data"
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    for split, size in SIZES.items():
        for kind in KINDS:
            pids = [str(len(problems) + row) for row in range(size)]
            splits[f"{kind}_{split}"] = pids
            for pid in tqdm(pids, desc=f"iconqa {split} {kind}", unit="question"):
                first, second = rng.sample(ICONS, 2)
                counts = (rng.randint(1, 6), 0) if rng.random() < 0.5 else _two_counts(rng)
                icons = [
                    rng.choice(renderings.split(concept.char)[int(split != "train")])
                    for concept, count in zip((first, second), counts, strict=True)
                    if count
                ]
                placed = [icon for icon, count in zip(icons, counts, strict=False) for _ in range(count)]
                folder = base / "iconqa" / split / kind / pid
                save_png(
                    several(placed, rng.choice(("white", "white", "gray", "yellow", "pink")), rng)[0],
                    folder / "image.png",
                )
                ask = _choose if kind == "choose_txt" else _fill
                row = {
                    **ask(first, second, counts, rng),
                    "ques_type": kind,
                    "grade": rng.choice(("prek", "kindergarten", "grade1")),
                    "label": "S2",
                }
                write_json(folder / "data.json", row)
                problems[pid] = row
    for kind in KINDS:
        splits[f"{kind}_trainval"] = splits[f"{kind}_train"] + splits[f"{kind}_val"]
    for split in SIZES:
        splits[split] = [pid for kind in KINDS for pid in splits[f"{kind}_{split}"]]
    write_json(base / "problems.json", problems)
    write_json(base / "pid_splits.json", splits)
    write_licences(
        root,
        "Counting and comparing in IconQA's format",
        "Up to six icons on a canvas; text choices, and blanks to fill with a number. Pictures of val and test "
        "show each icon as drawn by an artist whose drawing of it is not among the training pictures.",
        ("noto", "noto-v1", "twemoji", "emojione", "fxemoji", "fluent-emoji", "fluent-emoji-flat"),
    )


def _two_counts(rng: random.Random) -> tuple[int, int]:
    first = rng.randint(1, 5)
    return first, rng.randint(1, 6 - first)


def _choose(first: Concept, second: Concept, counts: tuple[int, int], rng: random.Random) -> dict[str, Any]:
    if counts[1] and counts[0] != counts[1] and rng.random() < 0.6:
        word, pick = rng.choice((("more", max), ("fewer", min)))
        options = [first.plural, second.plural]
        rng.shuffle(options)
        answer = (first.plural, second.plural)[counts.index(pick(counts))]
        return {
            "question": f"Are there {word} {options[0]} or {options[1]}?",
            "choices": options,
            "answer": options.index(answer),
        }
    right = counts[0]
    options = [str(number) for number in rng.sample([n for n in range(1, 7) if n != right], 3)]
    index = rng.randrange(4)
    options.insert(index, str(right))
    return {"question": f"How many {first.plural} are there?", "choices": options, "answer": index}


def _fill(first: Concept, second: Concept, counts: tuple[int, int], rng: random.Random) -> dict[str, Any]:
    if counts[1] and rng.random() < 0.3:
        return {"question": "How many icons are there in all? There are ( ) icons.", "answer": str(sum(counts))}
    pattern = rng.choice(
        ("Count the {0}. There are ( ) {0}.", "How many {0} are there?", "There are ( ) {0} in the picture.")
    )
    return {"question": pattern.format(first.plural), "answer": str(counts[0])}
