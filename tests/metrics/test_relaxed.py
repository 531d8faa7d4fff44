"""Answers that are right if all that counts is that the right one is in them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_lit.data.sample import Sample
from mllm_lit.metrics import (
    ChoiceAccuracy,
    ExactMatch,
    M4CAccuracy,
    MeanScore,
    POPEScores,
    VQAAccuracy,
    contains,
    parse_choice,
    parse_choice_relaxed,
)

said = st.text(alphabet="AaBbIi dogsht.,'5 1-", max_size=12)


@given(st.text(alphabet="ab '-5", max_size=12), st.text(alphabet="ab 5", min_size=1, max_size=4))
def test_whole_words_are_those_of_lvlm_ehub(text: str, phrase: str) -> None:
    """Its definition, ``\\b`` around the escaped phrase, where the phrase begins and ends in a word."""
    if phrase != phrase.strip():
        return
    assert contains(text, phrase) == bool(re.search(r"\b" + re.escape(phrase) + r"\b", text))


@pytest.mark.parametrize(
    ("text", "phrase", "there"),
    [
        ("It is 1.5 m", "1", False), ("1,000", "000", False), ("It is 1.", "1", True), ("5, I think", "5", True),
        ("it costs $5.", "$5", True), ("Yes, it is", "yes", True), ("yesterday", "yes", False), ("no", "", False),
        ("the hot dogs", "hot dog", False), ("a hot  dog", "hot dog", False), ("(dog)", " dog ", True),
    ],
)  # fmt: skip
def test_containment(text: str, phrase: str, there: bool) -> None:
    assert contains(text, phrase) is there


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("B", 1), ("b", 1), ("(B)", 1), ("B)", 1), ("B is correct", 1), ("I think it is B", 1), ("B. dog", 1),
        ("Answer: A", 0), ("A is correct", 0), ("A or B", -1), ("A hot dog.", 1), ("It's a dog", 0), ("Hot dog.", 1),
        ("vitamin C", 2), ("The answer is (C)", 2), ("It is C, vitamin C", 2), ("B or C", -1), ("D", -1), ("", -1),
        ("D. dog", 0), ("I'm sure: dog", 0), ("the hot dog", 1), ("dog, not vitamin C", -1), ("dogs", -1),
    ],
)  # fmt: skip
def test_the_option_that_is_named(text: str, index: int) -> None:
    assert parse_choice_relaxed(text, ("dog", "hot dog", "Vitamin C.")) == index


def test_letters_alone_and_equal_options_have_no_text() -> None:
    letters = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")  # what a format without choices gives
    assert parse_choice_relaxed("a dog", letters) == -1
    assert parse_choice_relaxed("it must be D, I think", letters) == 3
    assert parse_choice_relaxed("red", ("red", "red", "blue")) == -1


@given(said, st.lists(st.sampled_from(("dog", "hot dog", "A dog", "I", "5")), max_size=4))
def test_a_choice_is_never_read_otherwise_than_strictly(text: str, choices: list[str]) -> None:
    strict, relaxed = parse_choice(text, len(choices)), parse_choice_relaxed(text, choices)
    assert -1 <= relaxed < max(len(choices), 1)
    assert strict in (-1, relaxed)


def sample(references: tuple[str, ...], choices: tuple[str, ...] = ()) -> Sample:
    return Sample.single_turn("1", "?", references[0], references=references, choices=choices)


METRICS: dict[str, MeanScore] = {
    "exact": ExactMatch(),
    "exact lower": ExactMatch("lower"),
    "exact gqa": ExactMatch("gqa"),
    "vqa": VQAAccuracy(),
    "m4c": M4CAccuracy(),
}


@pytest.mark.parametrize("metric", METRICS.values(), ids=METRICS)
@given(text=said, pool=st.lists(st.text(alphabet="Aadogst .5", min_size=1, max_size=5), min_size=1, max_size=3))
def test_relaxed_is_never_below_strict(metric: MeanScore, text: str, pool: list[str]) -> None:
    one = sample(tuple(pool[i % len(pool)] for i in range(10)))
    for prediction in (text, one.references[0], f" {one.references[0]}. "):
        ((strict, relaxed, _),) = metric.records([prediction], [one])
        assert relaxed is not None
        assert strict <= relaxed <= 1


@pytest.mark.parametrize(
    ("metric", "one", "text", "strict", "relaxed"),
    [
        (ExactMatch("gqa"), sample(("left",)), "It is on the left.", 0, 1),
        (ExactMatch(), sample(("7",)), "The answer is 7", 0, 1),
        (ExactMatch("lower"), sample(("red", ), ("red", "blue")), "red, I guess", 0, 1),
        (ExactMatch("lower"), sample(("red", ), ("red", "blue")), "red or blue", 0, 0),
        (ChoiceAccuracy(), sample(("B",), ("cat", "dog")), "a dog", 0, 1),
        (ChoiceAccuracy(), sample(("B",), ("cat", "dog")), "A. dog", 0, 0),
        # Three say yes: by the official rule (3 · 2/3 + 7 · 1) / 10. Of two answers that are there the better one.
        (VQAAccuracy(), sample(("yes",) * 3 + ("no",) * 7), "Yes, they are.", 0, 0.9),
        (VQAAccuracy(), sample(("yes",) * 3 + ("no",) * 7), "yes and no", 0, 1),
        # All agree, so the strict score compares as they stand; the relaxed one does not.
        (VQAAccuracy(), sample(("yes",) * 10), "Yes.", 0, 1),
        (VQAAccuracy(), sample(("2",) * 10), "There are two dogs", 0, 1),
        (M4CAccuracy(), sample(("coca cola",) * 3 + ("coke",) * 7), "It says Coca Cola!", 0, 0.9),
    ],
)  # fmt: skip
def test_right_if_it_is_in_there(metric: MeanScore, one: Sample, text: str, strict: float, relaxed: float) -> None:
    metric.update([text], [one])
    assert metric.compute() == pytest.approx(
        {metric.headline: 100 * strict, f"{metric.headline}_relaxed": 100 * relaxed}
    )


def test_scorers_without_a_relaxed_score_report_none() -> None:
    class Length(MeanScore):
        headline = "length"

        def row_score(self, prediction: str, sample: Sample) -> float:
            return min(len(prediction) / 10, 1.0)

    for metric in (Length(), POPEScores()):
        metric.update(["yes"], [sample(("yes",))])
        assert not [name for name in metric.compute() if name.endswith("relaxed")]
