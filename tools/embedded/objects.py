"""Writes what is in the pictures of ``coco_captions``, for CHAIR, and ``pope``, questions about it."""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

from embedded.concepts import SOURCE
from embedded.packages import read_json
from embedded.sources import write_json
from mllm_lit.metrics.hallucination import mentioned

NAMES = {name: concept.word for concept in SOURCE for name in (concept.word, concept.plural)}
ARTICLES = {concept.word: concept.article for concept in SOURCE}


def objects_of(coco: Path, split: str) -> dict[int, list[str]]:
    """Image -> what was put in it, which the reference without the background's colour names whole."""
    annotations = read_json(coco / "annotations" / f"captions_{split}2014.json")["annotations"]
    told = [one for one in annotations if one["caption"].startswith("A picture of ")]
    return {one["image_id"]: sorted(set(mentioned(one["caption"], NAMES))) for one in told}


def write_objects(coco: Path) -> None:
    """``instances_*2014.json`` as COCO has them, without outlines, and the names of every object, one a line."""
    lines = (", ".join(dict.fromkeys((concept.word, concept.plural))) for concept in SOURCE)
    (coco / "synonyms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    categories = [{"id": n, "name": one.word, "supercategory": one.group} for n, one in enumerate(SOURCE, 1)]
    numbers = {one["name"]: one["id"] for one in categories}
    for split in ("train", "val"):
        pairs = [(image, word) for image, words in objects_of(coco, split).items() for word in words]
        annotations = [
            {"id": n, "image_id": image, "category_id": numbers[word]} for n, (image, word) in enumerate(pairs, 1)
        ]
        content = {"annotations": annotations, "categories": categories}
        write_json(coco / "annotations" / f"instances_{split}2014.json", content)


def write_pope(folder: Path, coco: Path, seed: int) -> None:
    """For every object of a validation picture one question about it and one about something that is absent.

    Absent things are drawn as POPE draws them: at random, the most frequent ones of the split, or those that most
    often stand beside what is there.
    """
    there = objects_of(coco, "val")
    often = Counter(word for words in there.values() for word in words)
    beside: Counter[tuple[str, str]] = Counter()
    for words in there.values():
        for one, other in combinations(words, 2):
            beside[one, other] += 1
            beside[other, one] += 1
    names = {one["id"]: one["file_name"] for one in read_json(coco / "annotations" / "captions_val2014.json")["images"]}
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("random", "popular", "adversarial"):
        rng = random.Random(f"{seed} pope {split}")

        def questions(split: str = split, rng: random.Random = rng) -> Iterator[tuple[str, str, str]]:
            for image, words in there.items():
                absent = sorted(set(ARTICLES) - set(words))
                rng.shuffle(absent)  # ties are broken by chance
                if split == "popular":
                    absent.sort(key=lambda word: -often[word])
                elif split == "adversarial":
                    absent.sort(key=lambda word: (-sum(beside[one, word] for one in words), -often[word]))
                for word, other in zip(words, absent, strict=False):
                    yield names[image], word, "yes"
                    yield names[image], other, "no"

        lines = (
            json.dumps(
                {
                    "question_id": number,
                    "image": image,
                    "text": f"Is there {ARTICLES[word]} {word} in the picture?",
                    "label": label,
                }
            )
            for number, (image, word, label) in enumerate(questions(), 1)
        )
        (folder / f"coco_pope_{split}.json").write_text("\n".join(lines) + "\n", encoding="utf-8")
    shutil.copy(coco / "LICENSES.md", folder)
