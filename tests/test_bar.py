"""How long a run still takes, from what it has taken so far; bars in a file."""

import time
from types import SimpleNamespace as Bag
from typing import Any

import pytest

from mllm_lit.callbacks.bar import RunBar
from mllm_lit.progress import progress_bar


@pytest.mark.parametrize(
    ("scored", "seconds", "left"),
    [
        # 10 of 20 steps in 20 s; 2 of 4 validations of 30 samples and 100 test samples at half a second each.
        (50, 25.0, 20 + 80),
        (0, 0.0, None),
    ],
)
def test_what_is_left_counts_training_validations_and_the_last_scores(
    scored: int, seconds: float, left: float | None
) -> None:
    trainer: Any = Bag(
        global_step=10, estimated_stepping_batches=20,
        val_check_batch=5, check_val_every_n_epoch=None, max_epochs=2, max_steps=-1, num_training_batches=10,
        limit_val_batches=1.0, accumulate_grad_batches=1, current_epoch=1,
    )  # fmt: skip
    module: Any = Bag(evaluated_samples=scored, evaluating_seconds=seconds)
    bar = RunBar()
    bar._samples = {"val": 30, "test": 100}
    assert bar._seconds_left(trainer, module, 2.0) == left


def test_a_bar_in_a_file_is_lines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mllm_lit.progress.SECONDS", 0)
    with progress_bar(total=3, desc="one", unit=" steps", leave=False) as bar:
        bar.set_postfix_str("loss 1")
        for _ in progress_bar(range(2), desc="two", unit=" rows"):
            bar.update()
    told = capsys.readouterr().err
    assert "\r" not in told
    assert "\x1b" not in told
    lines = [line.rpartition(", ")[0] for line in told.splitlines()]
    assert lines[:2] == ["one: 0/3 steps", "one: 0/3 steps, loss 1"]
    assert [line for line in lines if line.startswith("two")] == ["two: 0/2 rows", "two: 1/2 rows", "two: 2/2 rows"]
    assert lines[-1] in ("one: 2/3 steps, loss 1", "two: 2/2 rows")


def test_scoring_does_not_count_as_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """40 s since the start of training, 30 of them spent on scores: ten steps took a second each."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    bar = RunBar()
    bar.disable()
    trainer: Any = Bag(global_step=0, estimated_stepping_batches=float("inf"), limit_val_batches=0)
    from mllm_lit.module import MLLMModule

    module: Any = MLLMModule.__new__(MLLMModule)
    object.__setattr__(module, "evaluating_seconds", 5.0)
    object.__setattr__(module, "step_loss", 0.5)
    bar.on_fit_start(trainer, module)
    bar.on_train_start(trainer, module)
    now, trainer.global_step = 140.0, 10
    object.__setattr__(module, "evaluating_seconds", 35.0)
    bar.on_train_batch_end(trainer, module, None, None, 0)
    assert bar._told == "1.00/s, loss 0.500"
