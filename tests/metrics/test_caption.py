"""Tokens and caption scores against pycocoevalcap's own."""

import json
import random
import shutil
from pathlib import Path

import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from mllm_lit.data.sample import Sample
from mllm_lit.metrics import CaptionScores, caption_scores, unavailable
from mllm_lit.metrics.caption import SCORERS
from mllm_lit.metrics.ptb import tokenize, tokenize_all

GOLD = json.loads(Path(__file__).with_name("ptb_gold.json").read_text(encoding="utf-8"))
needs_java = pytest.mark.skipif(shutil.which("java") is None, reason="compares with a Java program")


def test_tokens_are_those_the_java_program_gave() -> None:
    assert tokenize_all([caption for caption, _ in GOLD]) == [tokens for _, tokens in GOLD]


@needs_java
def test_tokens_are_those_the_java_program_gives_now() -> None:
    rng = random.Random(1)
    words = [word for caption, _ in GOLD for word in caption.split(" ")]
    captions = [" ".join(rng.choices(words, k=rng.randint(0, 9))) for _ in range(2000)]
    theirs = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(captions)})
    assert tokenize_all(captions) == [theirs[i][0] for i in range(len(captions))]


def test_newlines_are_blanks_and_a_letter_may_lose_its_period_to_the_next_caption() -> None:
    assert tokenize("a red\ndog.") == "a red dog"
    assert tokenize_all(["plan B.", "The man", "plan B.", "Men", "plan B."]) == [
        "plan b", "the man", "plan b.", "men", "plan b.",
    ]  # fmt: skip


def _split(rng: random.Random, images: int) -> tuple[list[str], list[list[str]]]:
    captions = [caption for caption, tokens in GOLD if tokens]
    return rng.choices(captions, k=images), [rng.choices(captions, k=rng.randint(1, 5)) for _ in range(images)]


def _official(predictions: list[str], references: list[list[str]], java: bool) -> dict[str, float]:
    if java:
        tokenizer = PTBTokenizer()
        truth = tokenizer.tokenize({i: [{"caption": c} for c in refs] for i, refs in enumerate(references)})
        said = tokenizer.tokenize({i: [{"caption": c}] for i, c in enumerate(predictions)})
    else:
        flat = iter(tokenize_all([c for refs in references for c in refs]))
        truth = {i: [next(flat) for _ in refs] for i, refs in enumerate(references)}
        said = {i: [c] for i, c in enumerate(tokenize_all(predictions))}
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu, 1)}
    return scores | {"rouge_l": Rouge().compute_score(truth, said)[0], "cider": Cider().compute_score(truth, said)[0]}


@pytest.mark.parametrize("java", [False, pytest.param(True, marks=needs_java)])
def test_scores_equal_pycocoevalcap(java: bool) -> None:
    predictions, references = _split(random.Random(0), 60)
    assert caption_scores(predictions, references) == pytest.approx(_official(predictions, references, java), abs=1e-12)


@pytest.mark.slow
@needs_java
def test_meteor_equals_pycocoevalcap(monkeypatch: pytest.MonkeyPatch) -> None:
    from pycocoevalcap.meteor.meteor import Meteor

    official = Meteor()  # One program for both: it loads its tables for seconds.
    monkeypatch.setitem(SCORERS, "meteor", lambda: official)
    predictions, references = _split(random.Random(3), 12)
    tokenizer = PTBTokenizer()
    truth = tokenizer.tokenize({i: [{"caption": c} for c in refs] for i, refs in enumerate(references)})
    said = tokenizer.tokenize({i: [{"caption": c}] for i, c in enumerate(predictions)})
    wanted, _ = official.compute_score(truth, said)
    scores = caption_scores(predictions, references, ("meteor", "cider"))
    assert scores["meteor"] == pytest.approx(wanted, abs=1e-12)
    assert scores["meteor"] > 0


def test_metric_is_over_the_split_and_in_points() -> None:
    predictions, references = _split(random.Random(2), 30)
    samples = [Sample.single_turn(f"{i:03}", "?", refs[0], references=tuple(refs)) for i, refs in enumerate(references)]
    metric = CaptionScores()
    metric.update(predictions[:7], samples[:7])
    metric.update(predictions[7:], samples[7:])
    wanted = {name: 100 * score for name, score in caption_scores(predictions, references).items()}
    assert metric.compute() == pytest.approx(wanted)
    assert metric.row_scores(predictions, samples) == [None] * 30


def test_single_image_has_a_cider_of_zero() -> None:
    assert caption_scores(["a red dog"], [["a red dog"]])["cider"] == 0


def test_without_java_the_missing_scores_are_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert set(unavailable()) == {"meteor", "spice"}
    with pytest.warns(UserWarning, match="meteor is unavailable.*apt-get install default-jre-headless"):
        metric = CaptionScores(("cider", "meteor"))
    assert metric.scorers == ("cider",)
    samples = [Sample.single_turn(str(i), "?", "x", references=(f"a {i} dog runs",)) for i in range(3)]
    metric.update(["a 1 dog runs"] * 3, samples)
    assert set(metric.compute()) == {"cider"}
    with pytest.raises(RuntimeError, match="meteor needs Java"):
        caption_scores(["a"], [["a"]], ("meteor",))


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"no caption scorer \['rouge'\]; there are: bleu, meteor, rouge_l, cider"):
        CaptionScores(("rouge",))
    with pytest.raises(ValueError, match="2 captions for 1 images"):
        caption_scores(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match=r"positions \[1\] have no reference"):
        caption_scores(["a", "b"], [["a"], []])


def test_chair_beside_the_other_scores_over_a_split() -> None:
    """Of three objects named one is annotated, one only in a reference, one nowhere."""
    words = {"dog": "dog", "puppy": "dog", "cat": "cat", "bird": "bird"}
    one = Sample.single_turn("1", "?", "x", references=("A puppy.", "A field."), meta={"objects": "cat"})
    two = Sample.single_turn("2", "?", "x", references=("Grass.",))
    metric = CaptionScores(("cider",), words)
    metric.update(["a dog and a cat and a bird", "a field"], [one, two])
    scores = metric.compute()
    assert {name: scores[name] for name in ("chair_i", "chair_s")} == pytest.approx({"chair_i": 100 / 3, "chair_s": 50})
    assert set(scores) == {"cider", "chair_i", "chair_s"}
