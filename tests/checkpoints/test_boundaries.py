"""Killed twice, at every pair of dangerous moments around every epoch's end: the run ends as one that was not.

A kill is an exception that nothing catches, thrown in this process; the resumed run is a new trainer with a new module
that knows what is on disk. Kills of real processes are in ``test_kill.py``.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import mllm_lit.callbacks.checkpoint as checkpoints
from mllm_lit.adapters import LoRA
from mllm_lit.backbones import Backbone
from mllm_lit.callbacks.checkpoint import TrainableCheckpoint, by_age
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.data import VQADataModule
from mllm_lit.importance import Spider
from mllm_lit.module import MLLMModule
from mllm_lit.sources import Source, Sources
from tests.toy import Toy, ToySource

pytestmark = pytest.mark.slow


class Killed(BaseException):
    """As SIGKILL: no handler of ``Exception`` sees it."""


class Kill(L.Callback):
    """Throws at a moment of a step."""

    def __init__(self, moment: str = "", step: int = 0) -> None:
        self.moment, self.step = moment, step

    def _at(self, moment: str, trainer: L.Trainer) -> None:
        if self.moment == moment and trainer.global_step == self.step:
            raise Killed

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._at("before validation", trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._at("after validation", trainer)

    def on_evaluation_batch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._at("in validation" if trainer.validating else "in the final evaluation", trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._at("in the next step", trainer)


# Rows of the toy: 22, so 6 batches an epoch; with accumulation an epoch ends inside a window of four.
WINDOWS = {1: 6, 4: 2}
EPOCHS = 3


class Fit:
    """A run in a folder, started as often as it takes."""

    def __init__(self, backbone: Path, folder: Path, accumulate: int, every: int = 1) -> None:
        self.backbone, self.folder, self.accumulate, self.every = backbone, folder, accumulate, every
        (folder / "data").mkdir(parents=True, exist_ok=True)

    def start(
        self, kill: Kill | None = None, epochs: int = EPOCHS, **more: Any
    ) -> tuple[L.Trainer, ForgettingCallback]:
        L.seed_everything(42)
        model = MLLMModule(
            Backbone(path=str(self.backbone)),
            LoRA(rank=2, dropout=0.1, lr=1e-2),
            importance=more.pop("importance", None),
        )
        data = VQADataModule(
            Toy(), self.folder / "data", Sources({"source": Source(ToySource(), self.folder / "data")}), batch_size=4,
            **{"max_eval_samples": 2, "val_samples": 2, "check_images": False, **more.pop("data", {})},
        )  # fmt: skip
        scores = ForgettingCallback()
        callbacks = [scores, kill or Kill(), TrainableCheckpoint(self.every)]
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=epochs, accumulate_grad_batches=self.accumulate, logger=False,
            default_root_dir=self.folder, callbacks=callbacks, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0, use_distributed_sampler=False, **more,
        )  # fmt: skip
        last = next(iter(by_age(self.folder / "checkpoints")), None)
        trainer.fit(model, data, ckpt_path=last and str(last), weights_only=True)
        return trainer, scores

    def weights(self) -> dict[str, torch.Tensor]:
        stored = torch.load(by_age(self.folder / "checkpoints")[0], weights_only=True)
        found: dict[str, torch.Tensor] = stored["state_dict"]
        return found


@pytest.fixture(scope="module")
def uninterrupted(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """What a run without a kill comes to, for an accumulation."""
    done: dict[int, Any] = {}

    def get(accumulate: int) -> Any:
        if accumulate not in done:
            run = Fit(tiny_folder, tmp_path_factory.mktemp("whole"), accumulate)
            trainer, scores = run.start()
            done[accumulate] = (trainer.global_step, run.weights(), scores.before, scores.during, scores.after)
        return done[accumulate]

    return get


MOMENTS = (
    "in the save",
    "before the name",
    "before validation",
    "in validation",
    "after validation",
    "in the next step",
)
PAIRS = list(itertools.product(MOMENTS, repeat=2))


def killed(run: Fit, moment: str, step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start a run and kill it at a moment of a step."""

    def dies(*_: Any) -> None:
        raise Killed

    save, name = checkpoints.rename, checkpoints.alias
    with monkeypatch.context() as patch:
        if moment == "in the save":
            patch.setattr(checkpoints, "rename", lambda a, b: dies() if b.name == f"step={step}.ckpt" else save(a, b))
        elif moment == "before the name":
            patch.setattr(checkpoints, "alias", lambda a, b: dies() if a.name == f"step={step}.ckpt" else name(a, b))
        with pytest.raises(Killed):
            run.start(Kill(moment, step))


def assert_ends_as(run: Fit, expected: Any) -> None:
    steps, weights, before, during, after = expected
    trainer, scores = run.start()
    assert trainer.global_step == steps
    mine = run.weights()
    assert mine.keys() == weights.keys()
    for name, tensor in mine.items():
        assert torch.equal(tensor, weights[name]), name
    assert (scores.before, scores.during, scores.after) == (before, during, after)


@pytest.mark.parametrize("accumulate", WINDOWS)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["; ".join(pair) for pair in PAIRS])
def test_killed_at_an_epochs_end_and_at_the_next(
    accumulate: int, first: str, second: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[int], Any],
) -> None:  # fmt: skip
    run = Fit(tiny_folder, tmp_path, accumulate)
    for epoch, moment in enumerate((first, second), start=1):
        killed(run, moment, epoch * WINDOWS[accumulate], monkeypatch)
    assert_ends_as(run, uninterrupted(accumulate))


@pytest.mark.parametrize("accumulate", WINDOWS)
@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["; ".join(pair) for pair in PAIRS])
def test_killed_twice_at_the_same_epochs_end(
    accumulate: int, first: str, second: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[int], Any],
) -> None:  # fmt: skip
    run = Fit(tiny_folder, tmp_path, accumulate)
    step = WINDOWS[accumulate]
    killed(run, first, step, monkeypatch)
    if first in ("after validation", "in the next step") and second != "in the next step":
        step += WINDOWS[accumulate]  # That moment is over.
    elif MOMENTS.index(second) < 2 and first != "in the save":
        step += WINDOWS[accumulate]
    killed(run, second, step, monkeypatch)
    assert_ends_as(run, uninterrupted(accumulate))


@pytest.mark.parametrize("every", [2, 5])
@pytest.mark.parametrize("accumulate", WINDOWS)
def test_killed_between_checkpoints(
    accumulate: int, every: int, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[int], Any],
) -> None:  # fmt: skip
    """What was done since the last checkpoint is done again, validations included."""
    run = Fit(tiny_folder, tmp_path, accumulate, every)
    for epoch, moment in enumerate(("in validation", "in the next step"), start=1):
        killed(run, moment, epoch * WINDOWS[accumulate], monkeypatch)
    assert_ends_as(run, uninterrupted(accumulate))


@pytest.mark.parametrize("accumulate", WINDOWS)
@pytest.mark.parametrize("first", MOMENTS[:-1])
def test_killed_at_the_last_step_and_in_the_final_evaluation(
    accumulate: int, first: str, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    uninterrupted: Callable[[int], Any],
) -> None:  # fmt: skip
    run, last = Fit(tiny_folder, tmp_path, accumulate), EPOCHS * WINDOWS[accumulate]
    killed(run, first, last, monkeypatch)
    killed(run, "in the final evaluation", last, monkeypatch)
    assert_ends_as(run, uninterrupted(accumulate))


def ended_early(run: Fit, how: str, **more: Any) -> L.Trainer:
    """A run that something but a kill ends ahead of its last step."""

    class Stop(Kill):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if how == "in a window" and trainer.fit_loop.epoch_loop.batch_progress.total.ready == 3:
                trainer.should_stop = True

        def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if how.startswith("by a score"):
                trainer.should_stop = True

    return run.start(Stop(), **more)[0]


@pytest.mark.parametrize("how", ["in a window", "by a score", "by a score in a window"])
@pytest.mark.parametrize("accumulate", WINDOWS)
def test_a_rules_last_step_is_done_once_in_a_run_that_ended_early(
    how: str, accumulate: int, tiny_folder: Path, tmp_path: Path
) -> None:
    """SPIDER blends at the end, so weights that were blended before the run went on would differ."""
    whole, part = (Fit(tiny_folder, tmp_path / name, accumulate) for name in ("whole", "part"))
    rule = {"blend": "end", "gradient": "clipped"}
    # Six batches an epoch: with accumulation the third is in the middle of a window.
    more = {"val_check_interval": 3} if how == "by a score in a window" else {}
    whole.start(importance=Spider(**rule), **more)
    trainer = ended_early(part, how, importance=Spider(**rule), **more)
    assert 0 < trainer.global_step < EPOCHS * WINDOWS[accumulate]
    part.start(importance=Spider(**rule), **more)
    one, other = whole.weights(), part.weights()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def test_other_scored_rows_are_measured_again_on_the_untrained_backbone(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """The connector is trained, so the weights of the checkpoint are not the backbone's."""
    run = Fit(tiny_folder, tmp_path, 1)
    killed(run, "in the next step", 12, monkeypatch)
    more = {"max_eval_samples": 5}
    trainer, scores = run.start(data=more)
    fresh = Fit(tiny_folder, tmp_path / "fresh", 1)
    (tmp_path / "fresh" / "data").rmdir()
    (tmp_path / "fresh" / "data").symlink_to(tmp_path / "data")
    _, expected = fresh.start(data=more, epochs=1)
    assert scores.before == expected.before
    assert "The test sets toy are scored otherwise" in caplog.text
    assert "measured again" in caplog.text
    # Nothing else has changed: the weights are those of a run that was scored as before.
    whole = Fit(tiny_folder, tmp_path / "whole", 1)
    whole.start()
    for name, tensor in whole.weights().items():
        assert torch.equal(tensor, run.weights()[name]), name
