"""Rehearsal without data: what is asked, the model's own answers before training, mixed in and trained on."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from mllm_lit.adapters import Full
from mllm_lit.answers import greedy_answers
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.load import EMBEDDED
from mllm_lit.data.collate import Collate
from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import Sample
from mllm_lit.datamodule import VQADataModule
from mllm_lit.errors import SettingError
from mllm_lit.module import MLLMModule
from mllm_lit.objectives import FLOW, ForgettingBudget, KLOnMixed, ObjectiveError, callback
from mllm_lit.rehearsal import GENERIC, REHEARSED, Rehearse, asked, read_questions
from mllm_lit.tasks import IconQA
from tests.test_module import trainer, weights

ROWS = [Sample.single_turn(str(i), "?", "x", images=(Path(f"{i // 2}.png"),)) for i in range(12)]  # six pictures


def test_no_picture_is_asked_the_same_twice() -> None:
    settings = Rehearse(share=2.0)
    pairs = asked(ROWS, settings, seed=1)
    assert len(set(pairs)) == len(pairs) == 24
    pictures = [picture for picture, _ in pairs]
    assert sorted(map(str, pictures[:6])) == [f"{i}.png" for i in range(6)]
    assert pictures[:6] == pictures[6:12] == pictures[18:]
    assert {question for _, question in pairs} <= set(GENERIC)
    assert asked(ROWS, settings, seed=1) == pairs != asked(ROWS, settings, seed=2)


def test_a_share_that_cannot_be_had_is_refused(tmp_path: Path) -> None:
    text = [Sample.single_turn("1", "?", "x")]
    with pytest.raises(DatasetError, match="have 0 pictures of their own"):
        asked(text, Rehearse(share=1.0), 0)
    with pytest.raises(
        DatasetError, match=r"so 120 samples for 12 rows, 0 held out; these have 6 pictures .* 16 questions"
    ):
        asked(ROWS, Rehearse(share=10.0), 0)
    with pytest.raises(DatasetError, match="so 0 samples"):
        asked(ROWS, Rehearse(share=0.01), 0)
    assert asked(text, Rehearse(share=1.0, without_pictures=1.0), 0) == [], "it asks itself"
    assert len(asked(ROWS, Rehearse(share=1.0, held_out=4, without_pictures=0.25), 0)) == 12
    with pytest.raises(SettingError, match=r"data.rehearse.without_pictures is 1.5"):
        Rehearse(without_pictures=1.5)
    with pytest.raises(SettingError, match=r"data.rehearse.share is 0"):
        Rehearse(share=0)
    with pytest.raises(SettingError, match="there is no file 'nowhere'"):
        Rehearse(questions="nowhere")
    (tmp_path / "empty").write_text("\n \n")
    with pytest.raises(SettingError, match="has no line"):
        read_questions(tmp_path / "empty")
    (tmp_path / "some").write_text("What is it?\n\n How many? \nWhat is it?\n")
    assert read_questions(tmp_path / "some") == ("What is it?", "How many?")


def fit(folder: Path, objective: Any = None, **more: Any) -> tuple[MLLMModule, VQADataModule, dict[str, Tensor]]:
    """Two epochs of the embedded model on 16 rows of IconQA and eight rehearsed ones."""
    model = MLLMModule(Backbone(str(EMBEDDED), dtype="float32"), Full(blocks=1, lr=1e-4), objective=objective)
    itself, most = more.pop("without_pictures", 0.0), more.pop("max_new_tokens", 48)
    held_out = 4 if isinstance(objective, ForgettingBudget) else 0
    rehearse = Rehearse(0.5, held_out=held_out, without_pictures=itself, max_new_tokens=most)
    task = IconQA(more.pop("sub_task", "choose_txt"))
    rows = VQADataModule(task, max_samples=16, rehearse=rehearse, batch_size=6, check_images=False)
    checkpoint = more.pop("ckpt_path", None)
    trainer(folder, max_epochs=2, **more).fit(model, datamodule=rows, ckpt_path=checkpoint)
    return model, rows, weights(model)


@pytest.mark.slow
@pytest.mark.parametrize("made", [lambda: None, lambda: ForgettingBudget(0.01, every=2)], ids=["nll", "budget"])
def test_the_models_own_answers_are_trained_on_and_a_resumed_run_has_the_same(
    made: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    monkeypatch.setattr(callback, "run_directory", lambda trainer: tmp_path / "run")
    torch.set_num_threads(1)
    keep = ModelCheckpoint(tmp_path / "run" / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    model, data, whole = fit(tmp_path, made(), callbacks=[keep])
    held = 4 if made() else 0
    assert len(data.held_out) == held
    assert not {row.id for row in data.held_out} & {row.id for row in data.train_rows}
    mixed = [row for row in data.train_rows if row.source == REHEARSED]
    assert 0 < len(mixed) <= 8
    assert len(data.train_rows) == 16 + len(mixed)
    (kept,) = (tmp_path / "run").glob("rehearsed_*.json")
    answers = [row.answer for row in [*data.held_out, *mixed]]
    assert [text for text in json.loads(kept.read_text()) if text] == answers
    base = MLLMModule(Backbone(str(EMBEDDED), dtype="float32"), Full(blocks=1))
    base.configure_model()
    assert base.net is not None
    collate = Collate(base.collate.processor, with_prompt=True)
    with torch.no_grad():
        said = [greedy_answers(base.net.eval(), collate, collate([row]), 48)[0] for row in mixed]
    assert said == [row.answer for row in mixed]
    resumed, _, again = fit(tmp_path, made(), ckpt_path=tmp_path / "run" / "checkpoints" / "step=3.ckpt")
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    if made():
        assert resumed.objective.strength == model.objective.strength != made().strength
    kept.unlink()
    tested = VQADataModule(IconQA("choose_txt"), max_eval_samples=2, rehearse=Rehearse(0.5))
    checkpoint = tmp_path / "run" / "checkpoints" / "step=3.ckpt"
    trainer(tmp_path).test(base, datamodule=tested, ckpt_path=checkpoint)
    with pytest.raises(SettingError, match="the weights have moved since"):
        fit(tmp_path, made(), ckpt_path=checkpoint)


@pytest.mark.slow
def test_the_model_asks_itself_without_a_picture_and_a_resumed_run_has_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    monkeypatch.setattr(callback, "run_directory", lambda trainer: tmp_path / "run")
    torch.set_num_threads(1)
    keep = ModelCheckpoint(tmp_path / "run" / "checkpoints", every_n_train_steps=1, save_top_k=-1, filename="{step}")
    model, data, whole = fit(tmp_path, callbacks=[keep], without_pictures=0.75)
    mixed = [row for row in data.train_rows if row.source == REHEARSED]
    alone = [row for row in mixed if not row.images]
    (kept,) = (tmp_path / "run").glob("rehearsed_*.json")
    answers = json.loads(kept.read_text())
    shown, pairs = answers[:2], answers[2:]
    assert len(alone) == len(pairs) > 2
    assert sorted([row.question, row.answer] for row in alone) == sorted(pairs)
    assert sorted(row.answer for row in mixed if row.images) == sorted(text for text in shown if text)
    # The processor's own chat template, cut where the user begins to write; questions end as a turn does.
    base = MLLMModule(Backbone(str(EMBEDDED), dtype="float32"), Full(blocks=1))
    base.configure_model()
    processor: Any = base.collate.processor
    begun = processor.apply_chat_template([{"role": "user", "content": [{"type": "text", "text": "|"}]}]).split("|")[0]
    ids = processor.tokenizer([begun.rstrip()] * 6, return_tensors="pt")
    net: Any = base.net.eval()
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(data._seed())
        out = net.generate(**ids, do_sample=True, max_new_tokens=48)[:, ids["input_ids"].shape[1] :]
    said = [text.strip() for text in processor.batch_decode(out, skip_special_tokens=True)]
    assert {question for question, _ in pairs} <= set(said)
    collate = Collate(processor, with_prompt=True)
    with torch.no_grad():
        told = [greedy_answers(net, collate, collate([row]), 48)[0] for row in alone]
    assert told == [row.answer for row in alone]
    _, _, again = fit(tmp_path, ckpt_path=tmp_path / "run" / "checkpoints" / "step=3.ckpt", without_pictures=0.75)
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())


@pytest.mark.slow
def test_answers_that_do_not_end_are_left_out_and_each_target_has_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder that runs share; pictures of both targets are all called image.png."""
    monkeypatch.setattr(callback, "kept_folder", lambda trainer: tmp_path / "shared")
    _, data, _ = fit(tmp_path, max_steps=1)
    whole = {row.id: row.answer for row in data.train_rows if row.source == REHEARSED}
    _, data, _ = fit(tmp_path, FLOW(), max_steps=1, max_new_tokens=4)
    short = {row.id: row.answer for row in data.train_rows if row.source == REHEARSED}
    assert len(short) < len(whole)
    assert short.items() <= whole.items()
    model, other, _ = fit(tmp_path, FLOW(), max_steps=1, sub_task="fill_in_blank")
    assert len({picture for rows in (data, other) for row in rows.train_rows for picture in row.images}) > 16
    assert len([*(tmp_path / "shared").glob("rehearsed_*.json")]) == 3
    own = torch.tensor([not row.source for row in other.train_rows])
    assert len(own) > own.sum() == 16
    # The median of the target's own samples, whatever is mixed in.
    assert model.objective.tau == pytest.approx(float(model.before_training.sample_nll[own].quantile(0.5)))


def test_the_multiplier_grows_beyond_the_budget_and_shrinks_within() -> None:
    """A model whose divergence falls as 1 / λ comes to the budget, from either side."""
    for start in (0.01, 100.0):
        objective = ForgettingBudget(budget=0.05, strength=start)
        for _ in range(200):
            told = objective.looked(0.2 / objective.strength)
        assert told["objective/kl_held_out"] == pytest.approx(0.05, rel=1e-3)
        assert told["objective/multiplier"] == objective.strength == pytest.approx(4.0, rel=1e-3)
    objective = ForgettingBudget()
    for divergence in (1e9, 1e9, 0.0):
        before = objective.strength
        objective.looked(divergence)
        assert 1 / math.e <= objective.strength / before <= math.e * (1 + 1e-9)
    again = ForgettingBudget()
    again.load_state_dict(objective.state_dict())
    assert again.strength == objective.strength


@pytest.mark.slow
def test_a_budget_without_samples_to_look_at_is_refused(tmp_path: Path) -> None:
    model = MLLMModule(Backbone(str(EMBEDDED), dtype="float32"), Full(blocks=1), objective=ForgettingBudget())
    rows = VQADataModule(IconQA("choose_txt"), max_samples=16, rehearse=Rehearse(0.5), check_images=False)
    with pytest.raises(ObjectiveError, match="Give data.rehearse.held_out"):
        trainer(tmp_path, max_steps=1).fit(model, datamodule=rows)


@pytest.mark.slow
def test_pulled_to_all_that_was_said_the_model_moves_less_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """KL on rehearsed rows holds them closer than their NLL alone does."""
    torch.set_num_threads(1)

    def apart(objective: Any) -> float:
        model, data, _ = fit(tmp_path, objective, max_steps=8)
        base = MLLMModule(Backbone(str(EMBEDDED), dtype="float32"), Full(blocks=1))
        base.configure_model()
        mixed = [row for row in data.train_rows if row.source == REHEARSED]
        batch = model.collate(mixed)
        logits = []
        for net in (base.net, model.net):
            assert net is not None
            with torch.no_grad():
                out = net.eval()(**batch.inputs).logits[:, :-1][batch.labels[:, 1:] != -100]
            logits.append(out.log_softmax(1))
        return float((logits[0].exp() * (logits[0] - logits[1])).sum(1).mean())

    assert apart(KLOnMixed(20.0)) < apart(None)


def test_a_step_is_looked_at_once_whatever_its_batches_and_never_again_after_resuming() -> None:
    """Four batches an optimizer step, looked at every second step; begun anew, and resumed at step 2."""
    for begin, expected in ((0, [2, 4]), (2, [4])):
        seen: list[int] = []
        rows = SimpleNamespace(held_out=[], batch_size=1)
        fit: Any = SimpleNamespace(global_step=begin, loggers=[], datamodule=rows, world_size=1, global_rank=0)
        own = SimpleNamespace(
            needs_before=False, look_every=2, looked=lambda apart, at=fit, seen=seen: seen.append(at.global_step) or {}
        )
        watch, model = callback.ObjectiveCallback(), SimpleNamespace(objective=own, device=torch.device("cpu"))
        watch.on_train_start(fit, model)
        for batch in range(1, 4 * (5 - begin) + 1):
            fit.global_step = begin + batch // 4
            watch.on_train_batch_end(fit, model)
        assert seen == expected
