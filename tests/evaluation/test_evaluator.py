"""Whole sets asked and scored by any model: batches by tokens, gone on with after a kill, whatever the batches."""

import json
import shutil
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import mllm_lit.evaluation.evaluator as evaluation
from mllm_lit.backbones import Backbone, LoadedBackbone
from mllm_lit.data.collate import Collate
from mllm_lit.data.images import load_image
from mllm_lit.evaluation import EvaluationSet, Evaluator, Result
from mllm_lit.evaluation.evaluator import batches_of
from tests.toy import Toy, ToySource


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> LoadedBackbone:
    return Backbone(str(tiny_folder), dtype="float32").load()


def sets(folder: Path) -> list[EvaluationSet]:
    made = [EvaluationSet(task.name, task, task.rows(folder, "test")) for task in (Toy(), ToySource())]
    assert [len(one.samples) for one in made] == [7, 7]
    return made


def evaluator(loaded: LoadedBackbone, folder: Path, tokens: int = 16_384) -> Evaluator:
    return Evaluator(sets(folder), Collate(loaded.processor), tokens)


def left_in(folder: Path) -> list[str]:
    """What a user sees there."""
    return sorted(file.name for file in folder.iterdir() if not file.name.startswith("."))


def same(one: Result, other: Result) -> None:
    """Scores and answers alike; the NLL up to the order of sums, which batches change."""
    assert one.records.keys() == other.records.keys()
    for name, records in one.records.items():
        for mine, theirs in zip(records, other.records[name], strict=True):
            assert mine["nll"] == pytest.approx(theirs["nll"], rel=1e-5)
            assert {**mine, "nll": 0} == {**theirs, "nll": 0}
        for key, value in one.scores[name].items():
            assert value == pytest.approx(other.scores[name][key], rel=1e-5)


def test_a_result_is_that_of_one_sample_at_a_time(loaded: LoadedBackbone, tmp_path: Path) -> None:
    """With the processor called for each sample alone, generate() of transformers and the model's own logits."""
    made = evaluator(loaded, tmp_path)
    result = made.run(loaded.model, "test", folder=tmp_path / "out", progress=False)
    model: Any = loaded.model
    form = made.collate.format
    for one in made.sets:
        assert [record["id"] for record in result.records[one.name]] == [sample.id for sample in one.samples]
        for sample, record in zip(one.samples, result.records[one.name], strict=True):
            shown = [load_image(ref, sample.id) for ref in sample.images]
            asked = form.asked([form.prompt(sample.turns[:-1], len(shown))])
            inputs = loaded.processor(**asked, **({"images": [shown]} if shown else {}), return_tensors="pt")
            stops = form.stop_ids(model.generation_config)
            out = model.generate(**inputs, max_new_tokens=one.task.max_new_tokens, do_sample=False, eos_token_id=stops)
            text = loaded.processor.tokenizer.decode(out[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            assert record["prediction"] == text.strip()
        lines = (tmp_path / "out" / f"{one.name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == result.records[one.name]
    assert left_in(tmp_path / "out") == ["toy.jsonl", "toy_source.jsonl"]


@pytest.mark.parametrize("tokens", [1, 100, 200])
def test_batches_change_nothing(loaded: LoadedBackbone, tmp_path: Path, tokens: int) -> None:
    whole = evaluator(loaded, tmp_path).run(loaded.model, progress=False)
    same(evaluator(loaded, tmp_path, tokens).run(loaded.model, progress=False), whole)


class Killed(BaseException):
    """As SIGKILL: no handler of ``Exception`` sees it."""


@pytest.mark.parametrize("cut", [0, 3, 40], ids=["a whole line", "within a line", "within two lines"])
def test_a_killed_evaluation_is_gone_on_with(loaded: LoadedBackbone, tmp_path: Path, cut: int) -> None:
    """Killed after each batch in turn, the last line cut by some bytes: in the end as one that was not killed."""
    whole = evaluator(loaded, tmp_path).run(loaded.model, progress=False)
    folder = tmp_path / "out"
    batches = 0

    def kill() -> None:
        nonlocal batches
        batches += 1
        if batches % 2 == 0:
            raise Killed

    result = None
    for _ in range(40):
        try:
            made = evaluator(loaded, tmp_path, tokens=100)
            result = made.run(loaded.model, "test", folder=folder, progress=False, after_batch=kill)
            break
        except Killed:
            newest = max(folder.glob("*.partial"), key=lambda file: file.stat().st_mtime_ns)
            content = newest.read_bytes()
            newest.write_bytes(content[: max(content.index(b"\n") + 1, len(content) - cut)])
    assert result is not None
    same(result, whole)
    assert left_in(folder) == ["toy.jsonl", "toy_source.jsonl"]


def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of samples of every batch from now on."""
    seen: list[int] = []
    answer = evaluation.Evaluator._ask

    def spy(self: Any, net: Any, batch: Any, *args: Any) -> Any:
        seen.append(len(batch.samples))
        return answer(self, net, batch, *args)

    monkeypatch.setattr(evaluation.Evaluator, "_ask", spy)
    return seen


def stopped(loaded: LoadedBackbone, tmp_path: Path) -> None:
    def kill() -> None:
        raise Killed

    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    with pytest.raises(Killed):
        evaluator(loaded, tmp_path, 1).run(loaded.model, folder=tmp_path / "out", progress=False, after_batch=kill)


def test_only_answers_of_the_same_weights_and_samples_are_taken(
    loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = asked(monkeypatch)
    stopped(loaded, tmp_path)
    seen.clear()
    first = evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False)
    assert sum(seen) == 13, "one answer is taken"
    again = evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False)
    assert sum(seen) == 13, "a finished evaluation is not repeated"
    assert again == first
    stopped(loaded, tmp_path)
    weight = next(loaded.model.parameters())
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight.view(-1)[5] += 1e-3
        seen.clear()
        evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False)
        assert sum(seen) == 14
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    stopped(loaded, tmp_path)
    seen.clear()
    half: Any = partial(torch.autocast, "cpu", torch.bfloat16)
    evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False, context=half)
    assert sum(seen) == 14
    stopped(loaded, tmp_path)
    monkeypatch.setattr(loaded.model.generation_config, "repetition_penalty", 1.5)
    seen.clear()
    evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False)
    assert sum(seen) == 14
    monkeypatch.undo()
    seen = asked(monkeypatch)
    stopped(loaded, tmp_path)
    monkeypatch.setattr(loaded.processor.image_processor, "image_mean", [0.1, 0.2, 0.3])
    seen.clear()
    evaluator(loaded, tmp_path).run(loaded.model, folder=tmp_path / "out", progress=False)
    assert sum(seen) == 14
    monkeypatch.undo()
    seen = asked(monkeypatch)
    stopped(loaded, tmp_path)
    other = evaluator(loaded, tmp_path)
    other.sets[0].samples = other.sets[0].samples[:6]
    seen.clear()
    other.run(loaded.model, folder=tmp_path / "out", progress=False)
    assert sum(seen) == 13


def test_out_of_memory_halves_the_budget_and_loses_nothing(
    loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = evaluator(loaded, tmp_path).run(loaded.model, progress=False)
    answer = evaluation.Evaluator._ask

    def small(self: Any, net: Any, batch: Any, *args: Any) -> Any:
        if len(batch.samples) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return answer(self, net, batch, *args)

    monkeypatch.setattr(evaluation.Evaluator, "_ask", small)
    made = evaluator(loaded, tmp_path, tokens=800)
    same(made.run(loaded.model, progress=False), whole)
    assert made._budget < 800
    assert f"going on with data.eval_tokens {made._budget:,}" in capsys.readouterr().err

    def none(self: Any, *args: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(evaluation.Evaluator, "_ask", none)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        evaluator(loaded, tmp_path).run(loaded.model, progress=False)


def test_a_pictures_questions_come_together_and_batches_keep_to_the_budget() -> None:
    from mllm_lit.data.sample import Sample

    generator = torch.Generator().manual_seed(7)
    for _ in range(200):
        count, tokens, most = (int(torch.randint(1, high, (1,), generator=generator)) for high in (60, 400, 30))
        lengths = torch.randint(5, 60, (count,), generator=generator).tolist()
        shown = torch.randint(0, 8, (count,), generator=generator).tolist()
        samples = [
            Sample.single_turn(str(i), "q", "a", images=(Path(f"{n}.png"),) if n else ()) for i, n in enumerate(shown)
        ]
        batches = batches_of(samples, lengths, range(count), tokens, most)
        assert sorted(i for batch in batches for i in batch) == list(range(count))
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= tokens
            assert len(batch) <= most
        for number in set(shown):
            mine = [i for i, n in enumerate(shown) if n == number]
            parts = sum(any(i in batch for i in mine) for batch in batches)
            if len(mine) <= most and len(mine) * max(lengths[i] for i in mine) <= tokens:
                assert parts == 1, "a picture's questions are split although one batch takes them"


def test_modes_of_the_modules_are_given_back(loaded: LoadedBackbone, tmp_path: Path) -> None:
    loaded.model.train()
    loaded.model.model.vision_tower.eval()
    try:
        evaluator(loaded, tmp_path).run(loaded.model, progress=False)
        assert loaded.model.training
        assert not loaded.model.model.vision_tower.training
    finally:
        loaded.model.eval()


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_all_samples_whatever_one_of_them_runs_out_of(
    loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, limit: int | None
) -> None:
    """What is done is dealt out as if it were not, and a rank short of memory goes on with its own share."""
    (one, _) = sets(tmp_path)
    made = evaluator(loaded, tmp_path)
    # Two samples a batch, so that a rank has more than one.
    made.tokens = 2 * (max(made.measure(one)) + one.task.max_new_tokens)
    answer = evaluation.Evaluator._ask
    short: list[int] = []

    def full(self: Any, net: Any, batch: Any, *args: Any) -> Any:
        if not short and len(batch.samples) > 1:
            short.append(len(batch.samples))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return answer(self, net, batch, *args)

    monkeypatch.setattr(evaluation.Evaluator, "_ask", full)

    def answered(done: set[int]) -> list[int]:
        places: list[int] = []
        for rank in range(world):
            monkeypatch.setattr(evaluation, "ranks", lambda rank=rank: (rank, world))
            made._budget = made.tokens
            for _, records in made._answer(loaded.model, one, done, nullcontext, False, limit):
                places += records
        return places

    every = answered(set())
    assert short == [2], "the first rank's first batch is too large once"
    assert len(every) == len(set(every))
    assert limit is not None or sorted(every) == list(range(7))
    done = set(every[::2])
    assert sorted(answered(done)) == sorted(set(every) - done)


def test_damaged_lines_and_fewer_ranks(loaded: LoadedBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of ranks that are no more are taken; a line that cannot be read costs itself alone."""
    whole = evaluator(loaded, tmp_path).run(loaded.model, progress=False)
    stopped(loaded, tmp_path)
    folder = tmp_path / "out"
    (first,) = folder.glob("*.partial")
    identity, line = first.read_text().splitlines()
    place, record = json.loads(line)
    others = [i for i in range(7) if i != place]
    first.write_text(f"{identity}\ngarbage\n{line}\n[1\n")
    more = "".join(json.dumps([i, whole.records["toy"][i]]) + "\n" for i in others[:3])
    (folder / "toy.rank5.partial").write_text(f"{identity}\n{more}")
    seen = asked(monkeypatch)
    same(evaluator(loaded, tmp_path).run(loaded.model, folder=folder, progress=False), whole)
    assert sum(seen) == 14 - 4
    assert left_in(folder) == ["toy.jsonl", "toy_source.jsonl"]
