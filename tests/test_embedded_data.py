"""The shipped data is whole: formats of the releases, pictures that decode, drawings held out, licences beside it."""

import json
import os
import zipfile
from collections import Counter
from hashlib import sha256
from pathlib import Path

import pytest
from PIL import Image

from mllm_lit.tasks import (
    EMBEDDED,
    GQA,
    POPE,
    BigBench,
    COCOCaptions,
    Conversations,
    IconQA,
    ScienceQA,
    Task,
    TextNLL,
    VQAv2,
    embedded_root,
)
from mllm_lit.tasks.embedded_data import ARCHIVES, CHECKSUMS
from tests.conftest import REPOSITORY

SPLITS: list[tuple[str, Task, tuple[str, ...]]] = [
    ("scienceqa", ScienceQA(), ("train", "val", "test")),
    ("iconqa", IconQA("choose_txt"), ("train", "val", "test")),
    ("iconqa", IconQA("fill_in_blank"), ("train", "val", "test")),
    ("coco_captions", COCOCaptions(), ("train2014", "val2014")),
    ("vqav2", VQAv2(), ("train2014", "val2014")),
    ("pope", POPE(), ("adversarial",)),
    ("bigbench", BigBench(), ("test",)),
    ("text_nll", TextNLL(), ("test",)),
    ("conversations", Conversations(), ("train", "val", "test")),
    ("gqa", GQA(), ("train_balanced", "val_balanced", "testdev_balanced")),
]


WRITTEN = ("bigbench", "text_nll")
"""Sets without pictures."""


def load(root: Path, name: str) -> dict:
    return json.loads((root / name).read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", EMBEDDED)
def test_licences_name_source_and_terms(name: str) -> None:
    text = (embedded_root(name) / "LICENSES.md").read_text(encoding="utf-8")
    assert "| work | package | licence | source |" in text
    if name in WRITTEN:
        assert {"bigbench": "Apache-2.0", "text_nll": "PDDL-1.0"}[name] in text
        return
    assert "MIT" in text
    if name not in ("vqav2", "conversations"):
        for attribution in ("CC-BY-4.0", "Twemoji", "Apache-2.0"):
            assert attribution in text


@pytest.mark.parametrize("name", EMBEDDED)
def test_licences_are_readable_beside_the_archive(name: str) -> None:
    assert (ARCHIVES / f"{name}_LICENSES.md").read_bytes() == (embedded_root(name) / "LICENSES.md").read_bytes()


def test_the_same_files_are_packed_to_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    from embedded.archives import pack_sets, unpack_sets

    unpack_sets(ARCHIVES, tmp_path / "first")
    for path in sorted((tmp_path / "first").rglob("*"), reverse=True):
        if path.is_file():
            copy = tmp_path / "second" / path.relative_to(tmp_path / "first")
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
            copy.chmod(0o600)
            os.utime(copy, (10**9, 10**9))
    for data in ("first", "second"):
        pack_sets(tmp_path / data, tmp_path / f"{data}_archives")
    packed = [sorted((tmp_path / f"{data}_archives").iterdir()) for data in ("first", "second")]
    assert [path.name for path in packed[0]] == sorted(path.name for path in ARCHIVES.iterdir())
    assert [path.read_bytes() for path in packed[0]] == [path.read_bytes() for path in packed[1]]
    for name in EMBEDDED:
        entries = [
            [(entry.filename, entry.CRC) for entry in zipfile.ZipFile(folder / f"{name}.zip").infolist()]
            for folder in (ARCHIVES, tmp_path / "first_archives")
        ]
        assert entries[0] == entries[1]
    sums = (tmp_path / "first_archives" / CHECKSUMS).read_text().split()
    assert sums[1::2] == [f"{name}.zip" for name in sorted(EMBEDDED)]
    assert sums[0] == sha256((tmp_path / "first_archives" / sums[1]).read_bytes()).hexdigest()


def test_words_to_learn_are_those_of_five_sets_whatever_else_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(REPOSITORY / "tools")
    from embedded.words import CORPUS, corpus, words_of

    places = {name: embedded_root(name) for name in EMBEDDED}
    for name in CORPUS:
        (tmp_path / name).symlink_to(places[name])
    texts = corpus(tmp_path)
    assert texts == corpus(places["pope"].parent)
    assert {"caption", "mammal", "answer"} & set(words_of(texts))


@pytest.mark.parametrize("name", [name for name in EMBEDDED if name not in ("conversations", "pope", *WRITTEN)])
def test_every_picture_decodes(name: str) -> None:
    pictures = [path for path in embedded_root(name).rglob("*") if path.suffix in (".png", ".jpg")]
    assert len(pictures) > 400
    for path in pictures:
        with Image.open(path) as picture:
            picture.load()
            assert picture.size == (64, 64), path
    assert sum(path.stat().st_size for path in pictures) < 4_000_000


@pytest.mark.parametrize(("name", "task", "splits"), SPLITS, ids=lambda value: getattr(value, "name", ""))
def test_readers_take_every_row_and_splits_share_no_picture(name: str, task: Task, splits: tuple[str, ...]) -> None:
    seen: dict[str, str] = {}
    ids: set[str] = set()
    for split in splits:
        samples = task.rows(embedded_root(name), split)
        assert len(samples) >= 120
        assert not ids & {sample.id for sample in samples}
        ids |= {sample.id for sample in samples}
        for path in {image for sample in samples for image in sample.images if isinstance(image, Path)}:
            digest = sha256(path.read_bytes()).hexdigest()
            assert seen.setdefault(digest, split) == split, f"{path} is a picture of {seen[digest]} too"


@pytest.mark.parametrize("split", ["random", "popular", "adversarial"])
def test_pope_asks_for_what_is_there_and_as_often_for_what_is_not(split: str) -> None:
    pictures = COCOCaptions(synonyms="embedded").rows(embedded_root("coco_captions"), "val2014")
    there = {Path(sample.images[0]).name: sample.meta["objects"].split("|") for sample in pictures}
    asked = POPE(prompt="{question}").rows(embedded_root("pope"), split)
    things = [sample.question.removesuffix(" in the picture?").split(maxsplit=3)[3] for sample in asked]
    pairs = zip(things, asked, strict=True)
    answers = [("no", "yes")[thing in there[Path(sample.images[0]).name]] for thing, sample in pairs]
    assert answers == [sample.answer for sample in asked]
    assert answers.count("yes") == answers.count("no") == sum(map(len, there.values()))
    if split == "popular":
        absent = Counter(thing for thing, answer in zip(things, answers, strict=True) if answer == "no")
        often = Counter(thing for words in there.values() for thing in words).most_common(3)
        assert [name for name, _ in absent.most_common(1)][0] in [name for name, _ in often]


def test_the_references_of_a_picture_name_its_objects_and_nothing_else() -> None:
    task = COCOCaptions(synonyms="embedded")
    metric = task.metric()
    samples = task.rows(embedded_root("coco_captions"), "val2014")
    metric.update([sample.references[0] for sample in samples], samples)
    assert metric.compute()["chair_i"] == 0
    metric.reset()
    metric.update([one.references[0] for one in reversed(samples)], samples)
    assert metric.compute()["chair_i"] > 90


def test_scienceqa_is_balanced_and_partly_text_only() -> None:
    problems = load(embedded_root("scienceqa"), "problems.json")
    splits = load(embedded_root("scienceqa"), "pid_splits.json")
    assert {len(splits[name]) for name in ("train", "val", "test")} == {1600, 300, 400}
    assert {"minival", "minitest", "trainval"} <= splits.keys()
    fields = [
        "question",
        "choices",
        "answer",
        "hint",
        "image",
        "task",
        "grade",
        "subject",
        "topic",
        "category",
        "skill",
        "lecture",
        "solution",
        "split",
    ]
    assert all(list(row) == fields for row in problems.values())
    text_only = sum(row["image"] is None for row in problems.values()) / len(problems)
    assert 0.22 < text_only < 0.32
    for n_choices in {len(row["choices"]) for row in problems.values()}:
        answers = Counter(row["answer"] for row in problems.values() if len(row["choices"]) == n_choices)
        assert set(answers) == set(range(n_choices)), "every letter is right now and then"
    for split in ("train", "test"):
        letters = Counter(problems[pid]["answer"] for pid in splits[split])
        assert max(letters.values()) < 0.4 * len(splits[split]), "always answering one letter must not pay"
    assert all(len(set(row["choices"])) == len(row["choices"]) for row in problems.values())


def test_scienceqa_facts_come_back_and_choices_keep_one_order() -> None:
    problems = load(embedded_root("scienceqa"), "problems.json")
    splits = load(embedded_root("scienceqa"), "pid_splits.json")

    def facts(split: str) -> set[tuple[str, str]]:
        return {(problems[pid]["skill"], problems[pid]["solution"]) for pid in splits[split]}

    known = len(facts("test") & facts("train")) / len(facts("test"))
    assert known > 0.9
    # As docs/embedded.md says of this set: the order is fixed, so that a letter can be learned like a class.
    assert all(row["choices"] == sorted(row["choices"]) for row in problems.values())


def test_iconqa_counts_up_to_six_in_both_sub_tasks() -> None:
    base = embedded_root("iconqa") / "iconqa_data"
    problems, splits = load(base, "problems.json"), load(base, "pid_splits.json")
    filled = Counter(problems[pid]["answer"] for pid in splits["fill_in_blank_train"])
    assert set(filled) == set("123456")
    chosen = problems[splits["choose_txt_test"][0]]
    assert chosen["ques_type"] == "choose_txt"
    assert isinstance(chosen["answer"], int)
    folder = base / "iconqa" / "test" / "choose_txt" / splits["choose_txt_test"][0]
    assert load(folder, "data.json") == chosen


def test_sources_say_what_their_references_are() -> None:
    assert "template" in (embedded_root("coco_captions") / "LICENSES.md").read_text(encoding="utf-8")
    assert "repeated ten times" in (embedded_root("vqav2") / "LICENSES.md").read_text(encoding="utf-8")
    captions = load(embedded_root("coco_captions") / "annotations", "captions_val2014.json")
    per_image = Counter(row["image_id"] for row in captions["annotations"])
    assert set(per_image.values()) == {5}
    assert len(per_image) == len(captions["images"])
    answers = load(embedded_root("vqav2"), "v2_mscoco_val2014_annotations.json")["annotations"]
    assert all(len(row["answers"]) == 10 for row in answers)
    kinds = {row["types"]["detailed"] for row in load(embedded_root("gqa"), "testdev_balanced_questions.json").values()}
    assert {"category", "colorQuery", "exist", "categoryVerify"} <= kinds


def test_conversations_are_the_questions_on_a_picture_of_vqav2() -> None:
    asked = {}
    for sample in VQAv2(prompt="{question}").rows(embedded_root("vqav2"), "train2014"):
        asked.setdefault(Path(str(sample.images[0])).resolve(), []).append((sample.question, sample.answer))
    rows = Conversations().rows(embedded_root("conversations"), "train")
    assert len(rows) == len(asked) == 250
    for row in rows:
        texts = [turn.text for turn in row.turns]
        assert list(zip(texts[::2], texts[1::2], strict=True)) == asked[Path(str(row.images[0])).resolve()]
