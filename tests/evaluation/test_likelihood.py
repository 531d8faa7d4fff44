"""Sets without generated answers: the most likely choice, and how likely a text is."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_lit.answers import answer_nll
from mllm_lit.backbones import Backbone, LoadedBackbone
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import Sample
from mllm_lit.evaluation import EvaluationSet, Evaluator, evaluator
from mllm_lit.evaluation.likelihood import CandidateCollate, answered, likely_answers
from mllm_lit.packed_rows import why_not_packed
from mllm_lit.tasks import BigBench, TextNLL
from tests.evaluation.test_prefill import SHARING, followed, kept
from tests.processors import test_data_path
from tests.processors.test_data_path import oracle_labels, own
from tests.tasks.releases import RELEASES
from tests.toy import Toy


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedBackbone:
    return Backbone(str(tiny_folder), dtype="float32").load()


def sets(folder: Path) -> list[EvaluationSet]:
    made = []
    for task in (BigBench(["odd"]), TextNLL(words=12)):
        RELEASES[task.name](folder / task.name)
        made.append(EvaluationSet(task.name, task, task.rows(folder / task.name, "test")))
    return made


def nll_of(loaded: LoadedBackbone, sample: Sample, answer: str) -> tuple[float, int]:
    """By the processor's own template and the model's logits, row by row."""
    asked = [{"role": "user", "content": [{"type": "text", "text": sample.question}]}]
    said = [*asked, {"role": "assistant", "content": [{"type": "text", "text": answer}]}]
    processor: Any = loaded.processor
    start = processor.apply_chat_template(asked, add_generation_prompt=True)
    whole = processor.apply_chat_template(said).rstrip("\n ")
    assert whole.startswith(start)
    ids = processor.tokenizer(whole, return_tensors="pt", return_offsets_mapping=True, add_special_tokens=False)
    first = sum(end <= len(start) for _, end in ids["offset_mapping"][0].tolist())
    with torch.no_grad():
        logits = loaded.model(input_ids=ids["input_ids"]).logits[0, first - 1 : -2]
    targets = ids["input_ids"][0, first:-1]  # without the end of the turn
    return float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")), len(targets)


def test_it_is_what_the_model_says_of_every_candidate_alone(
    loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sums over some tens of fp32 terms, hence 1e-4."""

    def generated(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("nothing is generated")

    monkeypatch.setattr(type(loaded.model), "generate", generated)
    questions, text = sets(tmp_path)
    result = Evaluator([questions, text], Collate(loaded.processor)).run(loaded.model, progress=False)
    right = 0
    for sample, record in zip(questions.samples, result.records["bigbench"], strict=True):
        sums = {choice: nll_of(loaded, sample, choice)[0] for choice in sample.choices}
        likely = min(sums, key=lambda choice: sums[choice])
        assert record["prediction"] == likely
        assert record["score"] == float(likely in sample.references)
        assert record["nll"] * record["answer_tokens"] == pytest.approx(sums[sample.answer], rel=1e-4)
        right += likely in sample.references
    assert result.scores["bigbench"]["accuracy"] == pytest.approx(100 * right / len(questions.samples))
    found = [nll_of(loaded, sample, sample.answer) for sample in text.samples]
    mean = sum(nll for nll, _ in found) / sum(count for _, count in found)
    expected = {"nll": mean, "token_probability": 100 * math.exp(-mean)}
    assert result.scores["text_nll"] == pytest.approx(expected, rel=1e-4)
    assert len(text.samples) == 19


@pytest.mark.parametrize("tokens", [1, 150])
def test_batches_other_sets_and_inference_mode_change_nothing(
    loaded: LoadedBackbone, tmp_path: Path, tokens: int
) -> None:
    made = sets(tmp_path)
    toy = EvaluationSet("toy", Toy(), Toy().rows(tmp_path, "test"))
    whole = Evaluator(made, Collate(loaded.processor)).run(loaded.model, progress=False)
    with torch.inference_mode():  # as Lightning evaluates in a single process
        parts = Evaluator([toy, *made], Collate(loaded.processor), tokens).run(loaded.model, progress=False)
    for one in made:
        assert whole.scores[one.name] == pytest.approx(parts.scores[one.name], rel=1e-4)
        for mine, theirs in zip(whole.records[one.name], parts.records[one.name], strict=True):
            assert mine["prediction"] == theirs["prediction"]
            assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-4)


def with_choices(files: list[Path]) -> list[Sample]:
    rows = [
        (test_data_path.sample("what colour is the square?", "red", files[:1]), ("a bluish green", "red", "re")),
        (test_data_path.sample("what is the capital of France?", "Paris, of course"), ("Rome", "Paris, of course")),
        (test_data_path.sample("how large is the square?", "3.", files[:1]), ("3.", "4", "12 or more", "3")),
        (test_data_path.sample("which is larger?", "2", files[2:4]), ("2", "1")),
    ]
    return [replace(row, choices=choices) for row, choices in rows]


@pytest.mark.parametrize("name", SHARING)
def test_candidates_behind_one_question_are_as_likely_as_alone(name: str, files: list[Path]) -> None:
    """By the processor's own rendering of each candidate; sums of fp32 terms in another order, hence 1e-4."""
    b, rows = kept(name), with_choices(files)
    collate = Collate(b.processor)
    share = why_not_packed(b.model, collate) is None
    together, apart = CandidateCollate(collate, share)(rows), CandidateCollate(collate)(rows)
    assert share == (name != "gemma3"), "whose pictures see ahead"
    assert together.tokens < 0.7 * apart.tokens or not share
    for row in rows:
        builder = CandidateCollate(collate, share)
        assert builder.length(row, collate([row]).labels.numel()) == builder([row]).labels.numel()
    said, alone = (likely_answers(b.model, batch, rows) for batch in (together, apart))
    sums, counts = (value.tolist() for value in answer_nll(b.model, together))
    end, place = b.processor.tokenizer.convert_tokens_to_ids(collate.format.end_of_turn), 0
    for row in rows:
        asked = own(b, row.turns[:-1], row.images, ask=True)
        for text in row.choices:
            expected = oracle_labels(b, answered(row, text))
            expected = expected[: len(expected) - (expected[-1] == end)]
            with torch.no_grad():
                logits = b.model(**followed(asked, expected)).logits[0].float().log_softmax(-1)
            start = asked["input_ids"].shape[1]
            nll = -sum(float(logits[start - 1 + i, token]) for i, token in enumerate(expected))
            assert sums[place] == pytest.approx(nll, rel=1e-4)
            assert counts[place] == len(expected)
            place += 1
    assert said.texts == alone.texts
    assert said.tokens == alone.tokens
    assert said.nll == pytest.approx(alone.nll, rel=1e-4)


def test_a_question_stands_once_in_what_the_evaluator_runs(
    loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it runs takes fewer positions than whole rows, and not more than it was told to."""
    (questions, _), seen = sets(tmp_path), []
    forward = type(loaded.model).forward

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(kwargs["input_ids"].numel())
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(loaded.model), "forward", count)
    Evaluator([questions], Collate(loaded.processor), 50).run(loaded.model, progress=False)
    assert len(seen) > 1
    assert max(seen) <= 50
    together, seen[:] = sum(seen), []
    monkeypatch.setattr(evaluator, "why_not_packed", lambda net, collate: "a reason")
    Evaluator([questions], Collate(loaded.processor), 50).run(loaded.model, progress=False)
    assert together < 0.8 * sum(seen)
