"""A few rows of every release, in its publisher's true layout, with tiny pictures; written into a folder on demand."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

import mllm_lit.tasks
from mllm_lit.tasks import Task

TASKS: dict[str, type[Task]] = {
    kind.name: kind
    for name in mllm_lit.tasks.__all__
    if isinstance(kind := getattr(mllm_lit.tasks, name), type) and issubclass(kind, Task) and kind is not Task
}
"""What the package reads, by name."""

TEN_REDS = ["red"] * 6 + ["dark red"] * 3 + ["pink"]


def picture(path: Path, colour: str = "red") -> None:
    """A 4 x 3 picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), colour).save(path)


def write(path: Path, content: Any) -> None:
    """JSON, and the folders on the way to it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content), encoding="utf-8")


def annotators(answers: list[str]) -> list[dict[str, Any]]:
    """Answers as VQA's releases have them."""
    return [{"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(answers, 1)]


def scienceqa(root: Path) -> None:
    common = {"task": "closed choice", "category": "c", "skill": "s", "lecture": "", "solution": ""}
    problems = {
        "1": {"question": "Which is a dog?", "choices": ["cat", "dog"], "answer": 1, "hint": "", "image": "image.png",
              "grade": "grade3", "subject": "natural science", "topic": "biology", "split": "train"},
        "2": {"question": "Which is a noun?", "choices": ["run", "sun", "fun"], "answer": 1, "hint": "Think.",
              "image": None, "grade": "grade8", "subject": "language science", "topic": "verbs", "split": "train"},
        "3": {"question": "Which state is this?", "choices": ["Ohio", "Utah"], "answer": 0, "hint": "See the map.",
              "image": "image.png", "grade": "grade6", "subject": "social science", "topic": "geo", "split": "test"},
        "4": {"question": "Which is red?", "choices": ["this", "that"], "answer": 0, "hint": "", "image": "image.png",
              "grade": "grade1", "subject": "natural science", "topic": "colour", "split": "val"},
    }  # fmt: skip
    write(root / "problems.json", {pid: problem | common for pid, problem in problems.items()})
    write(root / "pid_splits.json", {"train": ["1", "2"], "val": ["4"], "test": ["3"], "minitest": ["3"]})
    picture(root / "images/train/1/image.png")
    picture(root / "images/test/3/image.png")
    picture(root / "images/val/4/image.png")


def iconqa(root: Path) -> None:
    extra = {"grade": "prek", "label": "S2"}
    rows = {
        "choose_txt/10": {"question": "Is it even?", "choices": ["Yes", "no"], "answer": 0, "ques_type": "choose_txt"},
        "choose_txt/9": {"question": "Which?", "choices": ["3", "5"], "answer": "5", "ques_type": "choose_txt"},
        "fill_in_blank/7": {"question": "There are () dots.", "answer": 4, "ques_type": "fill_in_blank"},
    }
    for split in ("train", "val", "test"):
        for name, row in rows.items():
            write(root / "iconqa_data/iconqa" / split / name / "data.json", row | extra)
            picture(root / "iconqa_data/iconqa" / split / name / "image.png")


def _vqa(root: Path, prefix: str, consensus: bool) -> None:
    questions = [
        {"image_id": 9, "question": "What color is it?", "question_id": 9000},
        {"image_id": 9, "question": "Is it big?", "question_id": 9001},
    ]
    annotations: list[dict[str, Any]] = [
        {"question_id": 9000, "image_id": 9, "question_type": "what color", "answer_type": "other",
         "answers": annotators(TEN_REDS)},
        {"question_id": 9001, "image_id": 9, "question_type": "is it", "answer_type": "yes/no",
         "answers": annotators(["no"] * 10)},
    ]  # fmt: skip
    if consensus:
        annotations[0]["multiple_choice_answer"] = "red"
        annotations[1]["multiple_choice_answer"] = "no"
    for split in ("train2014", "val2014"):
        write(root / f"{prefix}OpenEnded_mscoco_{split}_questions.json", {"questions": questions})
        write(root / f"{prefix}mscoco_{split}_annotations.json", {"annotations": annotations})
        picture(root / f"{split}/COCO_{split}_000000000009.jpg")


def vqav2(root: Path) -> None:
    _vqa(root, "v2_", consensus=True)


def okvqa(root: Path) -> None:
    _vqa(root, "", consensus=False)


def vizwiz(root: Path) -> None:
    row = {"question": "What color?", "answers": annotators(TEN_REDS), "answer_type": "other", "answerable": 1}
    for split in ("train", "val"):
        write(root / f"Annotations/{split}.json", [row | {"image": f"VizWiz_{split}_00000000.jpg"}])
        picture(root / f"{split}/VizWiz_{split}_00000000.jpg")


def ocrvqa(root: Path) -> None:
    book = {"imageURL": "http://images.example/I/51.jpg", "title": "T", "authorName": "A", "genre": "Cookbooks",
            "questions": ["What is the genre?", "Is this a cookbook?"], "answers": ["Cookbooks", "Yes"]}  # fmt: skip
    splits = {"0761183272": 3, "1491580240": 1, "1421533464": 2}
    write(root / "dataset.json", {key: book | {"split": split} for key, split in splits.items()})
    for key in splits:
        picture(root / f"images/{key}.jpg")


def textvqa(root: Path) -> None:
    row = {"question_id": 34602, "question": "What brand is it?", "image_id": "003a8ae2ef43b901",
           "image_classes": [], "answers": TEN_REDS}  # fmt: skip
    page = {"image_id": "003a8ae2ef43b901", "ocr_tokens": ["DAKOTA", "DIGITAL"], "ocr_info": []}
    for split in ("train", "val"):
        write(root / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": [row | {"set_name": split}]})
        write(root / f"TextVQA_Rosetta_OCR_v0.2_{split}.json", {"dataset_type": split, "data": [page]})
    picture(root / "train_images/003a8ae2ef43b901.jpg")


def gqa(root: Path) -> None:
    row = {"imageId": "n161313", "question": "Is it overcast?", "answer": "no", "fullAnswer": "No, it is clear.",
           "types": {"structural": "verify", "semantic": "global"}, "isBalanced": True}  # fmt: skip
    for split in ("train", "val", "testdev"):
        write(root / f"questions1.2/{split}_balanced_questions.json", {"201307251": row})
    for shard in range(2):
        write(root / f"questions1.2/train_all_questions/train_all_questions_{shard}.json", {f"{shard}": row})
    picture(root / "images/n161313.jpg")


def _karpathy(name: str, image: dict[str, Any]) -> dict[str, Any]:
    sentences = [{"raw": "A red square.", "tokens": ["a", "red", "square"]}, {"raw": "Red.", "tokens": ["red"]}]
    splits = ("train", "test", "val", "restval")
    images = [image | {"sentences": sentences, "split": split, "imgid": i} for i, split in enumerate(splits)]
    return {"dataset": name, "images": images}


def flickr30k(root: Path) -> None:
    write(root / "dataset_flickr30k.json", _karpathy("flickr30k", {"filename": "1000092795.jpg"}))
    picture(root / "flickr30k-images/1000092795.jpg")


def coco_captions(root: Path) -> None:
    for split in ("train2014", "val2014"):
        images = [{"id": i, "file_name": f"COCO_{split}_{i:012d}.jpg", "height": 3, "width": 4} for i in (42, 7)]
        captions = [(42, "A red square."), (7, "Blue."), (42, "Something red ")]
        annotations = [{"id": i, "image_id": image, "caption": c} for i, (image, c) in enumerate(captions)]
        write(root / f"annotations/captions_{split}.json", {"info": {}, "images": images, "annotations": annotations})
        for image in images:
            picture(root / split / str(image["file_name"]))
        objects = [{"image_id": 42, "category_id": 18}, {"image_id": 42, "category_id": 18}]
        kinds = [{"supercategory": "animal", "id": 18, "name": "dog"}]
        write(root / f"annotations/instances_{split}.json", {"annotations": objects, "categories": kinds})
    karpathy = _karpathy("coco", {"filepath": "val2014", "filename": "COCO_val2014_000000000042.jpg"})
    for cocoid, image in enumerate(karpathy["images"], start=41):
        image["cocoid"] = cocoid
    write(root / "dataset_coco.json", karpathy)


def pope(root: Path) -> None:
    rows = [{"question_id": i, "image": "COCO_val2014_000000310196.jpg", "text": f"Is there a {thing} in the image?",
             "label": label} for i, (thing, label) in enumerate([("snowboard", "yes"), ("car", "no")], 1)]  # fmt: skip
    root.mkdir(parents=True, exist_ok=True)
    (root / "coco_pope_adversarial.json").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    picture(root / "val2014/COCO_val2014_000000310196.jpg")


def bigbench(root: Path) -> None:
    common = {"name": "odd", "description": "d", "keywords": [], "canary": "c", "metrics": ["multiple_choice_grade"]}
    examples = [
        {"input": "Pick the odd word out: red, cat", "target_scores": {"red": 0, "cat": 1}, "comment": "c"},
        {"input": "Which is it? ", "target_scores": {"a": 1, "b": 0.5, "c": 1}},
    ]
    write(root / "odd/task.json", {**common, "task_prefix": "Think. ", "examples": examples})


def text_nll(root: Path) -> None:
    (root / "test").mkdir(parents=True, exist_ok=True)
    words = [f"word{i}{'.' if i % 7 == 0 else ''}" for i in range(230)]
    (root / "test/one.txt").write_text(" ".join(words[:96]) + "\n\n" + "  ".join(words[96:]) + "\n", encoding="utf-8")


def conversations(root: Path) -> None:
    turns = ["<image>\nWhat is it?", "A square.", "What color?", "Red."]
    roles = ["human", "gpt"] * 2
    said = [{"from": role, "value": turn} for role, turn in zip(roles, turns, strict=True)]
    rows = [
        {"id": "a", "image": "pics/a.png", "conversations": said[:2]},
        {"id": "c", "image": "pics/a.png", "conversations": [{"from": "system", "value": "Be brief."}, *said]},
        {"id": "b", "conversations": [{"from": "human", "value": "Say hi."}, {"from": "gpt", "value": "hi"}]},
    ]
    for split in ("train", "val", "test"):
        write(root / f"{split}.json", rows)
    picture(root / "pics/a.png")


RELEASES: dict[str, Callable[[Path], None]] = {
    "scienceqa": scienceqa,
    "iconqa": iconqa,
    "vqav2": vqav2,
    "okvqa": okvqa,
    "vizwiz": vizwiz,
    "ocrvqa": ocrvqa,
    "textvqa": textvqa,
    "gqa": gqa,
    "flickr30k": flickr30k,
    "coco_captions": coco_captions,
    "pope": pope,
    "bigbench": bigbench,
    "text_nll": text_nll,
    "conversations": conversations,
}
