"""Writes the three source sets in the formats of COCO captions, VQAv2 and GQA."""

import json
import random
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from embedded.licences import write_licences
from embedded.packages import read_json
from embedded.pictures import Renderings, save_jpeg
from embedded.scenes import captions, draw_scene, questions

COCO = {"train": 400, "val": 300}
VQA_IMAGES = {"train": 250, "val": 300}
VQA_PER_IMAGE = 3
GQA_IMAGES = {"train": 250, "val": 150, "testdev": 300}
GQA_PER_IMAGE = 3


def write_coco(root: Path, renderings: Renderings, seed: int) -> None:
    """Captions: COCO's ``captions_*2014.json`` and images, five template references each."""
    rng = random.Random(f"{seed} coco")
    number = 0
    for split, size in COCO.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for _ in tqdm(range(size), desc=f"coco {split}", unit="image"):
            number += 1
            scene = draw_scene(renderings, rng, held_out=split != "train")
            name = f"COCO_{split}2014_{number:012d}.jpg"
            save_jpeg(scene.picture, root / f"{split}2014" / name)
            images.append({"id": number, "file_name": name, "width": 64, "height": 64, "license": 1})
            for caption in captions(scene):
                annotations.append(
                    {"id": len(annotations) + 1, "image_id": number, "caption": caption.capitalize() + "."}
                )
        info = {"description": "Template references for emoji pictures, in COCO's format", "version": "1.0"}
        licenses = [{"id": 1, "name": "See LICENSES.md", "url": ""}]
        content = {"info": info, "licenses": licenses, "images": images, "annotations": annotations}
        write_json(root / "annotations" / f"captions_{split}2014.json", content)
    write_licences(
        root,
        "Captions in COCO's format",
        "Pictures of one to three emojis on a coloured background. The five captions of a picture are **template "
        "references**: they follow from what was put in it, nobody wrote them by looking. The validation pictures show "
        "renderings by an artist whose drawing of that emoji is not in the training pictures.",
        ("noto", "noto-v1", "twemoji", "emojione", "fxemoji", "fluent-emoji", "fluent-emoji-flat"),
    )


def write_vqa(root: Path, work: Path, seed: int) -> None:
    """easy-VQA in VQAv2's format; its official test split serves as val2014."""
    rng = random.Random(f"{seed} vqa")
    yes_no, numbers = {"yes", "no"}, set("0123456789")
    for split, published in (("train", "train"), ("val", "test")):
        data = work / "easy_vqa" / "easy_vqa" / "data" / published
        by_image: dict[int, list[tuple[str, str]]] = {}
        for question, answer, image in read_json(data / "questions.json"):
            by_image.setdefault(image, []).append((question, answer))
        asked: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        chosen = sorted(rng.sample(sorted(by_image), VQA_IMAGES[split]))
        for image in tqdm(chosen, desc=f"vqa {split}", unit="image"):
            # COCO counts its images from 1 and never gives a train and a val image the same number.
            number = image + 1 + (100_000 if split == "val" else 0)
            with Image.open(data / "images" / f"{image}.png") as picture:
                save_jpeg(picture, root / f"{split}2014" / f"COCO_{split}2014_{number:012d}.jpg")
            for turn, (question, answer) in enumerate(
                rng.sample(by_image[image], min(VQA_PER_IMAGE, len(by_image[image])))
            ):
                identity = number * 1000 + turn
                asked.append({"image_id": number, "question": question.capitalize(), "question_id": identity})
                kind = "yes/no" if answer in yes_no else "number" if set(answer) <= numbers else "other"
                annotations.append(
                    {
                        "question_type": " ".join(question.split()[:2]),
                        "multiple_choice_answer": answer,
                        "answer_type": kind,
                        "answers": [
                            {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)
                        ],
                        "image_id": number,
                        "question_id": identity,
                    }
                )
        head = {
            "info": {"description": "easy-VQA 1.0 in VQAv2's format", "version": "1.0"},
            "license": {"name": "MIT", "url": "https://github.com/vzhou842/easy-VQA"},
            "data_type": "mscoco",
            "data_subtype": f"{split}2014",
        }
        write_json(
            root / f"v2_OpenEnded_mscoco_{split}2014_questions.json",
            {**head, "task_type": "Open-Ended", "questions": asked},
        )
        write_json(root / f"v2_mscoco_{split}2014_annotations.json", {**head, "annotations": annotations})
    write_licences(
        root,
        "easy-VQA in VQAv2's format",
        "Questions and pictures of easy-VQA 1.0 by Victor Zhou; its train split is train2014, its test split val2014. "
        "Each question has one true answer, **repeated ten times** where VQAv2 has ten people's answers: the VQA score "
        "is then plain accuracy after normalisation.",
        ("easy_vqa",),
    )


def write_gqa(root: Path, renderings: Renderings, seed: int) -> None:
    """Category, attribute and yes/no questions in GQA's format."""
    rng = random.Random(f"{seed} gqa")
    number = 0
    for split, size in GQA_IMAGES.items():
        rows = {}
        for _ in tqdm(range(size), desc=f"gqa {split}", unit="image"):
            number += 1
            scene = draw_scene(renderings, rng, held_out=split != "train")
            image = f"n{number}"
            save_jpeg(scene.picture, root / "images" / f"{image}.jpg")
            pool = list(questions(scene, rng))
            category = pool[0]
            for turn, question in enumerate([category, *rng.sample(pool[1:], GQA_PER_IMAGE - 1)]):
                rows[f"{number:06d}{turn}"] = {
                    "semantic": [],
                    "entailed": [],
                    "equivalent": [],
                    "question": question.text,
                    "imageId": image,
                    "isBalanced": True,
                    "groups": {"global": None, "local": f"{number}-{question.detailed}"},
                    "answer": question.answer,
                    "semanticStr": "",
                    "annotations": {"answer": {}, "question": {}, "fullAnswer": {}},
                    "types": {
                        "detailed": question.detailed,
                        "semantic": question.semantic,
                        "structural": question.structural,
                    },
                    "fullAnswer": f"{question.answer.capitalize()}.",
                }
        write_json(root / f"{split}_balanced_questions.json", rows)
    write_licences(
        root,
        "Questions in GQA's format",
        "Category, name, attribute, position and yes/no questions about pictures of emojis. Questions and answers "
        "follow from what was put in the picture. The val and testdev pictures show renderings by an artist whose "
        "drawing of that emoji is not in the training pictures.",
        ("noto", "noto-v1", "twemoji", "emojione", "fxemoji", "fluent-emoji", "fluent-emoji-flat"),
    )


def write_json(path: Path, content: Any) -> None:
    """Write compact UTF-8 JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
