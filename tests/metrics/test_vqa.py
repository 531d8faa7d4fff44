"""VQA accuracy against a loop-written reading of the definition."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_lit.data.sample import Sample
from mllm_lit.metrics import VQAAccuracy, m4c_accuracy, normalize_m4c, normalize_vqa, vqa_accuracy

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
DIGITS = {"none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
          "seven": "7", "eight": "8", "nine": "9", "ten": "10"}  # fmt: skip
SOME_CONTRACTIONS = {"dont": "don't", "cant": "can't", "hadnt've": "hadn't've", "hadn'tve": "hadn't've",
                     "twas": "'twas", "yall": "y'all", "oclock": "o'clock", "somebody'd": "somebodyd",
                     "ow's'at": "'ow's'at", "youve": "you've", "whos": "who's", "let's": "let's"}  # fmt: skip
PIECES = ["a", "an", "the", "The", "two", "none", "2", "red", "dog", "dont", "CANT", "hadnt've", "twas", "somebody'd",
          "10:30", "1,000", "1,5", "3.5", "a.b", "end.", "...", "it's", "yes", "no", "-", ",", "?", "!", "/", "(", ")",
          "t-shirt", "x,y", " ,", "; ", "\n", "\t", "", "'", "u.s.", ".5", "5."]  # fmt: skip
answers = st.lists(st.sampled_from(PIECES), min_size=1, max_size=4).flatmap(
    lambda pieces: st.sampled_from(["", " "]).map(lambda blank: blank.join(pieces))
)


def brute_normal(text: str) -> str:
    """Mark by mark, then word by word."""
    out = text
    for mark in MARKS:
        blank_beside = any(text[i : i + 2] in (f"{mark} ", f" {mark}") for i in range(len(text)))
        thousands = any(re.fullmatch(r"\d,\d", text[i : i + 3]) for i in range(len(text)))
        out = "".join(("" if blank_beside or thousands else " ") if char == mark else char for char in out)
    kept, removed = "", 0
    for i, char in enumerate(out):
        if char == "." and not out[i + 1 : i + 2].isdigit() and removed < 32:
            removed += 1
        else:
            kept += char
    words = [DIGITS.get(word, word) for word in kept.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(SOME_CONTRACTIONS.get(word, word) for word in words)


def brute_accuracy(prediction: str, given_answers: list[str]) -> float:
    """Annotator by annotator: how many of the others agree."""
    clean = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in given_answers]
    said = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len(set(clean)) > 1:
        clean, said = [brute_normal(answer) for answer in clean], brute_normal(said)
    scores = []
    for i in range(len(clean)):
        agreeing = sum(answer == said for j, answer in enumerate(clean) if j != i)
        scores.append(min(1.0, agreeing / 3))
    return sum(scores) / len(scores)


@given(answers, st.lists(answers, min_size=1, max_size=4), st.integers(1, 12))
def test_equals_the_definition(prediction: str, pool: list[str], annotators: int) -> None:
    given_answers = [pool[i % len(pool)] for i in range(annotators)]
    assert vqa_accuracy(prediction, given_answers) == pytest.approx(brute_accuracy(prediction, given_answers))


@given(st.text(max_size=60))
def test_normalisation_equals_the_definition_on_any_text(text: str) -> None:
    line = text.replace("\n", " ").replace("\t", " ").strip()
    assert normalize_vqa(text) == brute_normal(line)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("1,000", "1000"),
        ("1,000 dogs, cats", "1000 dogs cats"),
        ("10:30", "10:30"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("u.s.", "us"),
        ("t-shirt", "t shirt"),
        ("red, blue", "red blue"),
        ("red,blue", "red blue"),
        ("The man", "man"),
        ("dont", "don't"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("somebody'd", "somebodyd"),
        ("None", "0"),
        ("." * 40, "." * 8),
        ("a\tb\nc", "b c"),
    ],
)
def test_quirks_of_the_published_normalisation(text: str, normal: str) -> None:
    assert normalize_vqa(text) == normal


def test_nothing_is_normalised_where_the_annotators_agree() -> None:
    assert vqa_accuracy("The dog", ["the dog"] * 10) == 0
    assert vqa_accuracy("dog", ["the dog"] * 10) == 0
    assert vqa_accuracy("dog.", ["the dog"] * 9 + ["cat"]) == pytest.approx(1)


@pytest.mark.parametrize(("matches", "score"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_ten_annotators(matches: int, score: float) -> None:
    others = ["x", "y", "z"] * 4
    assert vqa_accuracy("red", ["red"] * matches + others[: 10 - matches]) == pytest.approx(score)


def test_no_annotator_is_an_error() -> None:
    with pytest.raises(ValueError, match="list of answers is empty"):
        vqa_accuracy("red", [])


def brute_m4c(text: str) -> str:
    """Lower case, no commas and question marks, the possessive apart, then as above."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return brute_normal(text.strip().replace("\n", " ").replace("\t", " ").strip())


@given(answers, st.lists(answers, min_size=1, max_size=4))
def test_m4c_equals_its_definition(prediction: str, pool: list[str]) -> None:
    given_answers = [pool[i % len(pool)] for i in range(10)]
    clean, said = [brute_m4c(answer) for answer in given_answers], brute_m4c(prediction)
    assert normalize_m4c(prediction) == said
    wanted = sum(min(1.0, sum(a == said for j, a in enumerate(clean) if j != i) / 3) for i in range(10)) / 10
    assert m4c_accuracy(prediction, given_answers) == pytest.approx(wanted)


def test_m4c_wants_ten_annotators() -> None:
    with pytest.raises(ValueError, match="9 annotators' answers; TextVQA's metric is defined for 10"):
        m4c_accuracy("x", ["x"] * 9)


def test_breakdown_by_answer_type() -> None:
    metric = VQAAccuracy(breakdown=("answer_type",))
    kinds = [("yes/no", "yes"), ("yes/no", "no"), ("number", "2")]
    samples = [
        Sample.single_turn(str(i), "?", answer, references=(answer,) * 10, meta={"answer_type": kind})
        for i, (kind, answer) in enumerate(kinds)
    ]
    metric.update(["yes", "yes", "2"], samples)
    assert metric.compute() == pytest.approx(
        {
            "vqa_accuracy": 200 / 3,
            "vqa_accuracy_relaxed": 200 / 3,
            "vqa_accuracy/yes-no": 50,
            "vqa_accuracy/number": 100,
        }
    )
    assert metric.row_scores(["yes", "yes", "2"], samples) == [1, 0, 1]
