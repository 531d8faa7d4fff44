"""Every reader on its release's true layout, and on what can be wrong with it."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.data.images import load_image
from mllm_lit.data.preflight import row_faults
from mllm_lit.errors import SettingError
from mllm_lit.tasks import (
    GQA,
    OCRVQA,
    OKVQA,
    POPE,
    BigBench,
    COCOCaptions,
    Conversations,
    DatasetError,
    Flickr30k,
    IconQA,
    ScienceQA,
    Task,
    TextNLL,
    TextVQA,
    VizWiz,
    VQAv2,
    embedded_root,
)
from tests.tasks.releases import RELEASES, TASKS, TEN_REDS, picture, write


@dataclass
class Case:
    """What the first row of a split has to be."""

    task: Task
    split: str
    ids: list[str]
    question: str
    answer: str
    image: str | None
    references: list[str]


SHORT = "Answer the question using a single word or phrase."
VIZWIZ = 'When the information is insufficient, respond with "Unanswerable". '
CAPTION = "Provide a brief description of the given image."
CHOOSE = "Choose an option from the choices to answer the question."
RED = ["A red square.", "Something red"]
CASES = [
    Case(ScienceQA(), "train", ["1", "2"], "Which is a dog? A.cat, B.dog", "B", "images/train/1/image.png", ["B"]),
    Case(
        ScienceQA(image_only=True, context=True), "minitest", ["3"],
        "See the map.\nWhich state is this? A.Ohio, B.Utah", "A", "images/test/3/image.png", ["A"],
    ),
    Case(
        IconQA(), "test", ["9", "10"], f"Which? Choices: 3, 5. {CHOOSE}", "5",
        "iconqa_data/iconqa/test/choose_txt/9/image.png", ["5"],
    ),
    Case(
        IconQA("fill_in_blank"), "test", ["7"],
        "There are () dots. Fill in the blanks in () or answer this question.", "4",
        "iconqa_data/iconqa/test/fill_in_blank/7/image.png", ["4"],
    ),
    Case(
        VQAv2(), "val2014", ["9000", "9001"], f"What color is it? {SHORT}", "red",
        "val2014/COCO_val2014_000000000009.jpg", TEN_REDS,
    ),
    Case(
        OKVQA(), "val2014", ["9000", "9001"], f"What color is it? {SHORT}", "red",
        "val2014/COCO_val2014_000000000009.jpg", TEN_REDS,
    ),
    Case(
        VizWiz(), "val", ["VizWiz_val_00000000"], f"Question: What color? {VIZWIZ}{SHORT}", "red",
        "val/VizWiz_val_00000000.jpg", TEN_REDS,
    ),
    Case(
        OCRVQA(), "test", ["0761183272#0", "0761183272#1"], f"What is the genre? {SHORT}", "Cookbooks",
        "images/0761183272.jpg", ["Cookbooks"],
    ),
    Case(
        TextVQA(), "val", ["34602"], f"What brand is it? {SHORT}", "red",
        "train_images/003a8ae2ef43b901.jpg", TEN_REDS,
    ),
    Case(
        TextVQA(ocr=True), "val", ["34602"], f"What brand is it? Reference OCR token: DAKOTA, DIGITAL {SHORT}", "red",
        "train_images/003a8ae2ef43b901.jpg", TEN_REDS,
    ),
    Case(GQA(), "testdev_balanced", ["201307251"], f"Is it overcast? {SHORT}", "no", "images/n161313.jpg", ["no"]),
    Case(GQA(), "train_all", ["0", "1"], f"Is it overcast? {SHORT}", "no", "images/n161313.jpg", ["no"]),
    Case(
        Flickr30k(prompt="Caption it."), "test", ["1"], "Caption it.", "A red square.",
        "flickr30k-images/1000092795.jpg", ["A red square.", "Red."],
    ),
    Case(
        COCOCaptions(), "train2014", ["42#0", "42#1", "7#0"], CAPTION, "A red square.",
        "train2014/COCO_train2014_000000000042.jpg", RED,
    ),
    Case(
        COCOCaptions(), "val2014", ["42", "7"], CAPTION, "A red square.",
        "val2014/COCO_val2014_000000000042.jpg", RED,
    ),
    Case(
        COCOCaptions(splits="karpathy"), "test", ["42"], CAPTION, "A red square.",
        "val2014/COCO_val2014_000000000042.jpg", ["A red square.", "Red."],
    ),
    Case(
        POPE(), "adversarial", ["1", "2"], f"Is there a snowboard in the image? {SHORT}", "yes",
        "val2014/COCO_val2014_000000310196.jpg", ["yes"],
    ),
    Case(
        BigBench(["odd"]), "test", ["odd/0", "odd/1"], "Think. Pick the odd word out: red, cat", "cat", None, ["cat"],
    ),
    Case(Conversations(), "train", ["a", "c", "b"], "What is it?", "A square.", "pics/a.png", ["A square."]),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task.name}-{case.split}")
def test_release_is_read_as_published(case: Case, tmp_path: Path) -> None:
    RELEASES[case.task.name](tmp_path)
    samples = case.task.rows(tmp_path, case.split)
    first = samples[0]
    assert [sample.id for sample in samples] == case.ids
    assert (first.question, first.answer, list(first.references)) == (case.question, case.answer, case.references)
    assert first.images == (() if case.image is None else (tmp_path / case.image,))
    assert all(load_image(image, "here").size == (4, 3) for sample in samples for image in sample.images)
    assert row_faults(samples) == []
    assert all(sample.origin for sample in samples)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task.name}-{case.split}")
def test_right_answers_score_full_marks_and_wrong_ones_none(case: Case, tmp_path: Path) -> None:
    RELEASES[case.task.name](tmp_path)
    samples = case.task.rows(tmp_path, case.split)
    right, wrong = case.task.metric(), case.task.metric()
    right.update([sample.answer for sample in samples], samples)
    wrong.update(["zebra crossing nothing" for _ in samples], samples)
    key = "bleu_1" if right.headline == "cider" else right.headline
    assert right.headline in right.compute()
    assert right.compute()[key] == pytest.approx(100)
    assert wrong.compute()[key] < 70


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task.name}-{case.split}")
def test_unknown_split_lists_those_there_are(case: Case, tmp_path: Path) -> None:
    RELEASES[case.task.name](tmp_path)
    with pytest.raises(DatasetError, match=r"no split 'trian'.*there are: \w+"):
        case.task.rows(tmp_path, "trian")


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.task.name}-{case.split}")
def test_missing_release_names_the_tree_and_where_to_get_it(case: Case, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        case.task.rows(tmp_path / "nowhere", case.split)
    message = str(caught.value)
    assert "nowhere" in message
    assert "ROOT/" in message
    assert case.task.published_at in message


def test_every_task_but_the_general_tables_has_a_release_here() -> None:
    assert set(RELEASES) == set(TASKS) - {"huggingface", "lmms_eval"}
    assert {name: task.name for name, task in TASKS.items()} == {name: name for name in TASKS}


def test_embedded_root_is_a_folder_and_others_are_refused() -> None:
    assert embedded_root("scienceqa").name == "scienceqa"
    with pytest.raises(ValueError, match="no embedded data for 'okvqa'; embedded are: scienceqa"):
        embedded_root("okvqa")


def test_scienceqa_labels_for_the_official_table(tmp_path: Path) -> None:
    RELEASES["scienceqa"](tmp_path)
    one, two = ScienceQA().rows(tmp_path, "train")
    assert (one.meta["subject"], one.meta["given"], one.meta["grades"]) == ("NAT", "IMG", "G1-6")
    assert (two.meta["subject"], two.meta["given"], two.meta["grades"]) == ("LAN", "TXT", "G7-12")
    assert two.images == ()


def test_scienceqa_with_choices_in_another_order(tmp_path: Path) -> None:
    """Each question has its own, the same whenever it is read."""
    RELEASES["scienceqa"](tmp_path)
    for sample, shuffled in zip(
        ScienceQA().rows(tmp_path, "train"), ScienceQA(order="shuffled").rows(tmp_path, "train"), strict=True
    ):
        assert sorted(shuffled.choices) == sorted(sample.choices)
        assert shuffled.choices["ABC".index(shuffled.answer)] == sample.choices["ABC".index(sample.answer)]
        named = ", ".join(f"{letter}.{choice}" for letter, choice in zip("ABC", shuffled.choices, strict=False))
        assert shuffled.question.endswith(named)
    root = embedded_root("scienceqa")
    orders = [[sample.choices for sample in ScienceQA(order="shuffled").rows(root, "test")] for _ in range(2)]
    assert orders[0] == orders[1]


@pytest.mark.parametrize("order", [None, "shuffled"])
def test_a_letter_stands_for_one_text_only_where_choices_are_sorted(order: Any) -> None:
    rows = [row for row in ScienceQA(order=order).rows(embedded_root("scienceqa"), "test") if len(row.choices) == 5]
    letters: dict[str, list[str]] = {}
    for row in rows:
        letters.setdefault(row.choices["ABCDE".index(row.answer)], []).append(row.answer)
    often = sum(max(map(found.count, found)) for found in letters.values()) / len(rows)
    assert often == 1 if order is None else often < 0.5


@pytest.mark.parametrize(
    ("answer", "expected", "reference", "right", "wrong"),
    [
        (None, "B", "B", ["B", "B. cat"], ["A", "A. dog", "dog"]),
        ("letter_text", "B. dog", "B", ["B", "B. dog"], ["A. dog", "dog"]),
        ("text", "dog", "dog", ["dog", " Dog"], ["B", "cat", "a dog"]),
    ],
)
def test_scienceqa_answered_by_letter_or_text(
    answer: Any, expected: str, reference: str, right: list[str], wrong: list[str], tmp_path: Path
) -> None:
    RELEASES["scienceqa"](tmp_path)
    task = ScienceQA(answer=answer)
    sample = task.rows(tmp_path, "train")[0]
    assert (sample.answer, sample.references) == (expected, (reference,))
    metric = task.metric()
    assert metric.row_scores(right, [sample] * len(right)) == [1.0] * len(right)
    assert metric.row_scores(wrong, [sample] * len(wrong)) == [0.0] * len(wrong)
    # Letter or text, in every form alike.
    for said, score in {"B": 1, "dog": 1, "It is a dog.": 1, "B. dog": 1, "A": 0, "cat": 0, "": 0}.items():
        assert metric.relaxed_score(said, sample) == score
    assert metric.labels(sample) == ("NAT", "IMG", "G1-6")
    with pytest.raises(SettingError, match="expected letter, letter_text or text"):
        ScienceQA(answer="words")  # type: ignore[arg-type]


def test_bigbench_takes_the_best_choices_and_names_what_has_none(tmp_path: Path) -> None:
    RELEASES["bigbench"](tmp_path)
    sample = BigBench(["odd"], prompt="{question} ({choices})").rows(tmp_path, "test")[1]
    assert (sample.question, sample.references) == ("Which is it? (a, b, c)", ("a", "c"))
    (tmp_path / "odd/task.json").rename(tmp_path / "odd.json")
    assert len(BigBench().rows(tmp_path, "test")) == 2, "all files of a folder"
    content = json.loads((tmp_path / "odd.json").read_text())
    content["examples"][1]["target_scores"] = {"a": 0, "b": 0}
    write(tmp_path / "odd.json", content)
    with pytest.raises(DatasetError, match=r"odd.json.*1.*gives all 2 choices 0; at least one has to be worse"):
        BigBench().rows(tmp_path, "test")


def test_a_text_is_cut_into_passages_and_nothing_is_lost(tmp_path: Path) -> None:
    RELEASES["text_nll"](tmp_path)
    text = (tmp_path / "test/one.txt").read_text()
    first, last = TextNLL(prompt="{text}").rows(tmp_path, "test")
    assert [len(half.split()) for half in (first.question, first.answer)] == [48, 48]
    assert [len(half.split()) for half in (last.question, last.answer)] == [48, 86], "the rest is of the last passage"
    assert " ".join([first.question, first.answer, last.question, last.answer]).split() == text.split()
    assert first.answer in text
    assert last.answer in text, "blanks are as they were"
    with pytest.raises(DatasetError, match="230 words, fewer than a passage of 500"):
        TextNLL(words=500).rows(tmp_path, "test")
    with pytest.raises(DatasetError, match=r"no split 'train'.*there are: test"):
        TextNLL().rows(tmp_path, "train")
    with pytest.raises(DatasetError, match="any text of your own"):
        TextNLL().rows(tmp_path / "nowhere", "test")


def test_a_conversation_is_one_sample_with_all_its_turns(tmp_path: Path) -> None:
    RELEASES["conversations"](tmp_path)
    sample = Conversations(prompt="{question}!").rows(tmp_path, "train")[1]
    said = [("system", "Be brief."), ("user", "What is it?!"), ("assistant", "A square."), ("user", "What color?!")]
    assert [(turn.role, turn.text) for turn in sample.turns] == [*said, ("assistant", "Red.")]
    assert sample.references == ("Red.",)
    assert len(sample.images) == 1, "the picture is shown once"


def test_a_letter_of_a_conversation_is_scored_as_a_choice(tmp_path: Path) -> None:
    row = {"id": "1", "conversations": [{"from": "human", "value": "A.x, B.y"}, {"from": "gpt", "value": "B"}]}
    write(tmp_path / "test.json", [row])
    task = Conversations(score="choice")
    [sample] = task.rows(tmp_path, "test")
    assert task.metric().row_scores(["B. y"], [sample]) == [1.0]
    assert task.metric().row_scores(["A"], [sample]) == [0.0]


def test_flickr_draws_from_eleven_instructions_the_same_way_every_time(tmp_path: Path) -> None:
    image = {"filename": "a.jpg", "sentences": [{"raw": "red"}], "split": "test"}
    write(tmp_path / "dataset_flickr30k.json", {"images": [image | {"imgid": i} for i in range(200)]})
    picture(tmp_path / "flickr30k-images/a.jpg")
    asked = [sample.question for sample in Flickr30k().rows(tmp_path, "test")]
    assert len(set(asked)) == 11
    assert asked == [sample.question for sample in Flickr30k().rows(tmp_path, "test")]


def test_template_with_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match=r"unknown field\(s\) \['hints'\]; there are: \{question\}"):
        VQAv2(prompt="{question} {hints}")
    assert TextVQA(prompt="{ocr}|{question}", ocr=True).prompt == "{ocr}|{question}"
    with pytest.raises(ValueError, match="'ocr'"):
        TextVQA(prompt="{ocr}|{question}")


def _edit(path: Path, change: Callable[[Any], Any]) -> None:
    content = json.loads(path.read_text())
    write(path, change(content) or content)


BAD: list[tuple[str, Task, str, str, Callable[[Any], Any], str]] = [
    ("answer beyond the choices", ScienceQA(), "train", "problems.json",
     lambda c: c["1"].update(answer=2), r"problems.json:1: field 'answer' is 2, but there are 2 choices"),
    ("answer of another type", ScienceQA(), "train", "problems.json",
     lambda c: c["1"].update(answer="B"), r"problems.json:1: \$.answer: expected int, got str"),
    ("no choices", ScienceQA(), "train", "problems.json",
     lambda c: c["2"].update(choices=[]), r"problems.json:2: \$.choices: expected array of length >= 1"),
    ("missing field", ScienceQA(), "train", "problems.json",
     lambda c: c["1"].pop("image") and None, "problems.json:1: object missing required field image"),
    ("odd grade", ScienceQA(), "train", "problems.json", lambda c: c["1"].update(grade="13"), "grade1 ... grade12"),
    ("listed but absent", ScienceQA(), "train", "pid_splits.json",
     lambda c: c["train"].append("99"), "problems.json:99: listed in pid_splits.json"),
    ("no such choice", IconQA(), "test", "iconqa_data/iconqa/test/choose_txt/9/data.json",
     lambda c: c.update(answer="7"), "'7', which is none of the choices"),
    ("empty answer list", VQAv2(), "val2014", "v2_mscoco_val2014_annotations.json",
     lambda c: c["annotations"][1].update(answers=[]), r"annotations\[1\]: \$.answers: expected array of length"),
    ("unanswered question", VQAv2(), "val2014", "v2_mscoco_val2014_annotations.json",
     lambda c: c["annotations"].pop() and None, "question_id 9001 has no annotation"),
    ("question annotated twice", VQAv2(), "val2014", "v2_mscoco_val2014_annotations.json",
     lambda c: c["annotations"].append(c["annotations"][0]), r"annotations\[2\]: question_id 9000 appears a second"),
    ("image listed twice", COCOCaptions(), "val2014", "annotations/captions_val2014.json",
     lambda c: c["images"].append(c["images"][0]), r"images\[2\]: id 42 appears a second time"),
    ("orphan annotation", VQAv2(), "val2014", "v2_OpenEnded_mscoco_val2014_questions.json",
     lambda c: c["questions"].pop() and None, "annotations.json:9001: no such question_id"),
    ("another image", VQAv2(), "val2014", "v2_OpenEnded_mscoco_val2014_questions.json",
     lambda c: c["questions"][0].update(image_id=8), "asks about image 8, but is annotated for image 9"),
    ("blank question", OKVQA(), "val2014", "OpenEnded_mscoco_val2014_questions.json",
     lambda c: c["questions"][0].update(question=" "), r"questions\[0\]: \$.question: expected text that is not"),
    ("wrong file", VQAv2(), "val2014", "v2_mscoco_val2014_annotations.json", lambda c: [1], "no list 'annotations'"),
    ("captions of other images", COCOCaptions(), "val2014", "annotations/captions_val2014.json",
     lambda c: c["annotations"][1].update(image_id=5), r"annotations\[1\]: captions image 5, which this file"),
    ("uncaptioned image", COCOCaptions(), "val2014", "annotations/captions_val2014.json",
     lambda c: c["annotations"].pop(1) and None, r"images\[1\]: image 7 has no caption"),
    ("nine annotators", TextVQA(), "val", "TextVQA_0.5.1_val.json",
     lambda c: c["data"][0].update(answers=["x"] * 9), "9 answers; the metric is defined for 10"),
    ("no OCR page", TextVQA(ocr=True), "val", "TextVQA_Rosetta_OCR_v0.2_val.json",
     lambda c: c["data"][0].update(image_id="other"), "not among those with OCR tokens"),
    ("unequal lists", OCRVQA(), "test", "dataset.json",
     lambda c: c["0761183272"].update(answers=["Yes"]), "dataset.json:0761183272: 2 questions, but 1 answers"),
    ("no letter", Conversations(score="choice"), "train", "train.json", lambda c: c,
     "train.json:0: score 'choice' wants the letter of one of 26 choices, the answer is 'A square.'"),
    ("neither yes nor no", Conversations(score="pope"), "train", "train.json", lambda c: c,
     "score 'pope' wants the answer yes or no, found 'A square.'"),
    ("one annotator", Conversations(score="m4c"), "train", "train.json", lambda c: c,
     "score 'm4c' is defined for ten answers, the row has 1"),
    ("half an exchange", Conversations(), "train", "train.json",
     lambda c: c[0]["conversations"].pop() and None, r"turns from \['human'\], expected human and gpt in turn"),
    ("marker without image", Conversations(), "train", "train.json",
     lambda c: c[0].pop("image") and None, "1 <image> markers for 0 images"),
]  # fmt: skip


@pytest.mark.parametrize(("task", "split", "file", "change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_row_is_named(
    task: Task, split: str, file: str, change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    RELEASES[task.name](tmp_path)
    _edit(tmp_path / file, change)
    with pytest.raises(DatasetError, match=message):
        task.rows(tmp_path, split)


def test_objects_of_a_picture_for_chair(tmp_path: Path) -> None:
    RELEASES["coco_captions"](tmp_path)
    words = tmp_path / "synonyms.txt"
    words.write_text("dog, puppy\nsquare, box\n")
    rows = COCOCaptions(synonyms=str(words)).rows(tmp_path, "val2014")
    assert {row.id: dict(row.meta) for row in rows} == {"42": {"objects": "dog"}, "7": {}}
    words.write_text("square, box\n")
    with pytest.raises(DatasetError, match=r"instances_val2014\.json:categories\[0\]: category 'dog' is no name"):
        COCOCaptions(synonyms=str(words)).rows(tmp_path, "val2014")
    (tmp_path / "annotations" / "instances_val2014.json").unlink()
    with pytest.raises(DatasetError, match=r"instances_val2014\.json"):
        COCOCaptions(synonyms=str(words)).rows(tmp_path, "val2014")
    words.write_text("dog, puppy\ncat, puppy\n")
    with pytest.raises(ValueError, match=r"synonyms\.txt:2: 'puppy' stands for 'dog' already, now for 'cat'"):
        COCOCaptions(synonyms=str(words))
    with pytest.raises(ValueError, match=r"no file of synonyms 'nowhere\.txt'.*LisaAnne"):
        COCOCaptions(synonyms="nowhere.txt")
    with pytest.raises(ValueError, match="set splits: official"):
        COCOCaptions("karpathy", synonyms="embedded")


def test_all_bad_rows_are_reported_together(tmp_path: Path) -> None:
    RELEASES["scienceqa"](tmp_path)
    _edit(tmp_path / "problems.json", lambda c: [c[pid].update(answer=9) for pid in ("1", "2")] and c)
    with pytest.raises(DatasetError, match="2 faulty rows") as caught:
        ScienceQA().rows(tmp_path, "train")
    assert [(fault.row, Path(fault.file).name) for fault in caught.value.faults] == [
        ("1", "problems.json"),
        ("2", "problems.json"),
    ]


def test_text_that_is_not_utf8_is_named_with_its_line(tmp_path: Path) -> None:
    RELEASES["pope"](tmp_path)
    path = tmp_path / "coco_pope_adversarial.json"
    path.write_bytes(path.read_bytes() + b'{"text": "caf\xe9"}\n')
    with pytest.raises(DatasetError, match=r"line 3, byte \d+ is not UTF-8 text \(0xe9\)"):
        POPE().rows(tmp_path, "adversarial")


def test_broken_json_is_named_with_its_place(tmp_path: Path) -> None:
    RELEASES["gqa"](tmp_path)
    (tmp_path / "questions1.2/testdev_balanced_questions.json").write_text('{"1": {"question"\n: }}')
    with pytest.raises(DatasetError, match="line 2, column 3: not valid JSON"):
        GQA().rows(tmp_path, "testdev_balanced")
    RELEASES["pope"](tmp_path)
    path = tmp_path / "coco_pope_adversarial.json"
    path.write_text(path.read_text() + "{]\n{]\n")
    with pytest.raises(DatasetError, match="2 faulty rows"):
        POPE().rows(tmp_path, "adversarial")


def test_ends_of_lines_within_a_text_are_no_ends_of_rows(tmp_path: Path) -> None:
    """JSON takes U+2028 and U+0085 as they are, and Python's str.splitlines splits at them."""
    RELEASES["pope"](tmp_path)
    path = tmp_path / "coco_pope_adversarial.json"
    text = path.read_text().replace("Is there a snowboard", "Is\u2028there\u0085a snowboard")
    path.write_text(text, encoding="utf-8")
    first, second = POPE(prompt="{question}").rows(tmp_path, "adversarial")
    assert first.question == "Is\u2028there\u0085a snowboard in the image?"
    assert second.origin.endswith(":2")


def test_key_that_appears_twice_is_named(tmp_path: Path) -> None:
    RELEASES["gqa"](tmp_path)
    path = tmp_path / "questions1.2/testdev_balanced_questions.json"
    path.write_text('{"7": {"question": "a"}, "7": {"question": "b"}}')
    with pytest.raises(DatasetError, match=r"questions.json: an object has the key '7' more than once"):
        GQA().rows(tmp_path, "testdev_balanced")


def test_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    RELEASES["ocrvqa"](tmp_path)
    path = tmp_path / "dataset.json"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(OCRVQA().rows(tmp_path, "test")) == 2
