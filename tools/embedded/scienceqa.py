"""Writes the target ``scienceqa``: multiple-choice science questions in ScienceQA's format.

A limited set of facts comes back in every split, in other words and, where there is a picture, as another artist
drew it.
"""

import random
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from embedded.concepts import COUNTRIES
from embedded.licences import write_licences
from embedded.packages import read_json
from embedded.pictures import Renderings, render_svg, save_png
from embedded.science_items import Country, Items
from embedded.sources import write_json

SIZES = {"train": 1600, "val": 300, "test": 400}


def read_countries(work: Path) -> list[Country]:
    """Names, capitals and continents."""
    facts = read_json(work / "countries-list" / "countries.min.json")
    continents = read_json(work / "countries-list" / "continents.min.json")
    return [
        Country(code, facts[code]["name"], facts[code]["capital"], continents[facts[code]["continent"]])
        for code in COUNTRIES
    ]


def read_flags(work: Path, renderings: Renderings) -> tuple[dict[str, list[Image.Image]], dict[str, list[Image.Image]]]:
    """Flags to train on (three artists), and the two held-out artists' (Twemoji, circle-flags)."""
    circles = read_json(work / "circle-flags" / "icons.json")
    train, held_out = {}, {}
    for code in COUNTRIES:
        families = renderings.families("".join(chr(0x1F1E6 + ord(letter) - ord("A")) for letter in code))
        square = render_svg((work / "flag-icons" / "flags" / "1x1" / f"{code.lower()}.svg").read_text(encoding="utf-8"))
        body = circles["icons"][circles.get("aliases", {}).get(code.lower(), {}).get("parent", code.lower())]["body"]
        circle = render_svg(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 512 512">{body}</svg>')
        held_out[code] = [*families.pop("twemoji"), circle]
        train[code] = [square, *(picture for pictures in families.values() for picture in pictures)]
    return train, held_out


def write_scienceqa(root: Path, work: Path, renderings: Renderings, seed: int) -> None:
    """``problems.json``, ``pid_splits.json`` and ``images/{split}/{pid}/image.png``."""
    rng = random.Random(f"{seed} scienceqa")
    countries, flags = read_countries(work), read_flags(work, renderings)
    problems: dict[str, dict[str, Any]] = {}
    splits: dict[str, list[str]] = {}
    for split, size in SIZES.items():
        held_out = split != "train"
        items = Items(renderings, flags[int(held_out)], countries, rng, held_out=held_out)
        splits[split] = [str(len(problems) + row + 1) for row in range(size)]
        for pid in tqdm(splits[split], desc=f"scienceqa {split}", unit="question"):
            item = items.draw()
            if item.picture:
                save_png(item.picture, root / "images" / split / pid / "image.png")
            subject, topic, category = item.heading
            problems[pid] = {
                "question": item.question,
                "choices": list(item.choices),
                "answer": item.choices.index(item.answer),
                "hint": item.hint,
                "image": "image.png" if item.picture else None,
                "task": "closed choice",
                "grade": f"grade{item.grade}",
                "subject": subject,
                "topic": topic,
                "category": category,
                "skill": item.skill,
                "lecture": item.lecture,
                "solution": item.solution,
                "split": split,
            }
    splits |= {
        "trainval": splits["train"] + splits["val"],
        "minival": splits["val"][:100],
        "minitest": splits["test"][:100],
    }
    write_json(root / "problems.json", problems)
    write_json(root / "pid_splits.json", splits)
    write_licences(
        root,
        "Science questions in ScienceQA's format",
        "Multiple-choice questions on animals, foods, materials and countries, 27 % of them without a picture. The val "
        "and test pictures of a thing are by an artist whose drawing of it is not among the training pictures; flags "
        "are held out by artist too (Twemoji and circle-flags). Capitals and continents come from countries-list.",
        (
            "noto",
            "noto-v1",
            "twemoji",
            "emojione",
            "fxemoji",
            "fluent-emoji",
            "fluent-emoji-flat",
            "flag-icons",
            "circle-flags",
            "countries-list",
        ),
    )
