"""Choices, exact answers, hallucination and the trade-off."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mllm_lit.data.sample import Sample
from mllm_lit.metrics import (
    ChoiceAccuracy,
    ExactMatch,
    POPEScores,
    chair_scores,
    exact_match,
    forgetting,
    gqa_match,
    mentioned,
    normalised,
    ocrvqa_match,
    parse_choice,
    parse_yes_no,
    pope_scores,
    tradeoff,
)


@pytest.mark.parametrize(
    ("text", "index"),
    [
        ("A", 0), ("C", 2), (" B\n", 1), ("D", -1), ("b", -1), ("", -1), ("A. dog", 0), ("A.", -1), ("A.dog", -1),
        ("D. dog", -1), ("(A)", -1), ("A dog", -1), ("The answer is B.", 1), ("So the answer is B.", -1),
        ("The answer is B!", 1), ("The answer is B", -1), ("The answer is A. The answer is B.", -1),
        ("The answer is Z.", -1), ("Because. The answer is C. Yes.", 2), ("é. x", -1),
    ],
)  # fmt: skip
def test_choice_parsing_with_three_choices(text: str, index: int) -> None:
    assert parse_choice(text, 3) == index


@given(st.text(), st.integers(1, 6))
def test_choice_parsing_never_names_a_choice_that_is_not_there(text: str, n_choices: int) -> None:
    assert -1 <= parse_choice(text, n_choices) < n_choices


def test_choice_accuracy_by_subject_modality_and_grade() -> None:
    metric = ChoiceAccuracy(breakdown=("subject", "given", "grades"))
    rows = [("NAT", "TXT|IMG", "G1-6", "A"), ("NAT", "NO", "G7-12", "B"), ("SOC", "IMG", "G1-6", "B")]
    samples = [
        Sample.single_turn(str(i), "?", answer, references=(answer,), choices=("x", "y"),
               meta={"subject": subject, "given": seen, "grades": grades})
        for i, (subject, seen, grades, answer) in enumerate(rows)
    ]  # fmt: skip
    metric.update(["A", "The answer is B.", "no idea"], samples)
    assert metric.compute() == pytest.approx(
        {
            "accuracy": 200 / 3, "accuracy_relaxed": 200 / 3,
            "accuracy/NAT": 100, "accuracy/SOC": 0, "accuracy/TXT": 100, "accuracy/IMG": 50,
            "accuracy/NO": 100, "accuracy/G1-6": 50, "accuracy/G7-12": 100,
        }
    )  # fmt: skip


def test_matches_differ_in_what_they_forgive() -> None:
    assert [match("Left.", "left") for match in (exact_match, ocrvqa_match, gqa_match)] == [False, False, True]
    assert [match(" LEFT", "left") for match in (exact_match, ocrvqa_match, gqa_match)] == [False, True, True]
    assert [match("left ", "left") for match in (exact_match, ocrvqa_match, gqa_match)] == [True, True, True]


def test_unknown_match_is_refused() -> None:
    with pytest.raises(ValueError, match="match is 'fuzzy'; there are: exact, lower, gqa"):
        ExactMatch("fuzzy")


def test_row_scored_twice_counts_once_and_unequal_lists_are_refused() -> None:
    metric = ExactMatch()
    samples = [Sample.single_turn(str(i), "?", "x", references=("x",)) for i in range(2)]
    metric.update(["x", "y"], samples)
    metric.update(["x"], samples[:1])
    assert metric.compute()["accuracy"] == 50
    with pytest.raises(ValueError, match="1 predictions for 2 rows"):
        metric.update(["x"], samples)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_score_of_nothing_is_an_error_and_reset_forgets() -> None:
    metric = ExactMatch()
    sample = Sample.single_turn("1", "?", "x", references=("x",))
    assert metric(["x"], [sample])["accuracy"] == 100
    metric.reset()
    with pytest.raises(RuntimeError, match="ExactMatch has no answer to score"):
        metric.compute()


@pytest.mark.parametrize(
    ("text", "yes"),
    [("yes", True), ("No", False), ("no, there is none", False), ("There is not. Yes.", False), ("NO", True),
     ("Nothing", True), ("Yes. No.", True), ("", True), ("it's not,", False)],
)  # fmt: skip
def test_pope_reading(text: str, yes: bool) -> None:
    assert parse_yes_no(text) is yes


def test_pope_scores_from_a_confusion_matrix() -> None:
    cells = [("yes", "yes")] * 3 + [("yes", "no")] + [("no", "yes")] * 2 + [("no", "no")] * 4
    said, labels = zip(*cells, strict=True)
    assert pope_scores(said, labels) == pytest.approx(
        {"f1": 2 * 0.75 * 0.6 / 1.35, "accuracy": 0.7, "precision": 0.75, "recall": 0.6, "yes_ratio": 0.4}
    )
    assert pope_scores(["no"], ["yes"])["f1"] == 0
    with pytest.raises(ValueError, match="labels are yes or no, found"):
        pope_scores(["no"], ["maybe"])
    metric = POPEScores()
    samples = [Sample.single_turn(str(i), "?", label, references=(label,)) for i, label in enumerate(labels)]
    metric.update(said, samples)
    assert metric.compute()["accuracy"] == pytest.approx(70)
    assert sum(score or 0 for score in metric.row_scores(said, samples)) == 7


def test_mentions_take_the_longest_name_and_plurals() -> None:
    words = {"dog": "dog", "puppy": "dog", "hot dog": "hot dog", "bus": "bus", "glass": "glass"}
    assert mentioned("Two hot dogs, a puppy and dogs by BUSES.", words) == ["hot dog", "dog", "dog", "bus"]
    assert mentioned("A dogged glass", words) == ["glass"]


def test_chair_counts_mentions_and_captions() -> None:
    words = {"dog": "dog", "cat": "cat", "kitten": "cat"}
    scores = chair_scores(["a dog, a cat, a kitten", "a cat", "nothing"], [{"dog"}, {"cat"}, {"dog"}], words)
    assert scores == pytest.approx({"chair_i": 2 / 4, "chair_s": 1 / 3})
    with pytest.raises(ValueError, match="no name of the vocabulary stands for"):
        chair_scores(["a"], [{"bird"}], words)


def test_tradeoff_and_forgetting() -> None:
    assert tradeoff(80, [50, 70]) == pytest.approx({"A_S": 60, "A_T": 80, "H": 2 / (1 / 60 + 1 / 80), "O": 70})
    assert tradeoff(0, [0])["H"] == 0
    assert normalised([50, 20], [25, 30]) == pytest.approx((50 + 150) / 2)
    assert normalised([50, 0], [25, 30]) is None
    assert forgetting(80, 60) == pytest.approx({"points": 20, "percent": 25})
    assert forgetting(0, 5)["percent"] == 0
    with pytest.raises(ValueError, match="no source was scored"):
        tradeoff(80, [])
    with pytest.raises(ValueError, match="must not be negative"):
        tradeoff(80, [-1])
