"""The bar of a run: its optimizer steps, the loss, and the time that is left."""

import math
import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

from mllm_lit.backbones.callback import validations
from mllm_lit.callbacks.forgetting import evaluator_of
from mllm_lit.module import MLLMModule
from mllm_lit.progress import progress_bar
from mllm_lit.wording import duration

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} steps{postfix}"


class RunBar(ProgressBar):
    """Optimizer steps of the whole run, the loss, and the time that is left with all evaluations; these have own bars.

    The estimate takes a step and a scored sample to last as long as those so far have on average.
    """

    def __init__(self) -> None:
        super().__init__()
        self._on = True
        self._bar: tqdm[Any] | None = None
        self._began = self._first = self._evaluating = 0.0
        self._first_step, self._told = 0, ""
        self._samples: dict[str, int] = {}
        """Of a validation (``val``), and of the scores after training (``test``)."""

    def disable(self) -> None:
        """Show nothing."""
        self._on = False

    def enable(self) -> None:
        """Show it."""
        self._on = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        tqdm.write(" ".join(map(str, args)))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock of the run."""
        self._began = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Show the bar, and start the clock of the training."""
        assert isinstance(pl_module, MLLMModule)
        total = trainer.estimated_stepping_batches
        self._first, self._evaluating = time.perf_counter(), pl_module.evaluating_seconds
        self._first_step = trainer.global_step
        if not math.isinf(total):
            phases = ["test"] if validations(trainer) == 0 else ["val", "test"]
            self._samples = {phase: sum(len(s.samples) for s in evaluator_of(trainer, phase).sets) for phase in phases}
        self._bar = progress_bar(
            desc="training",
            total=None if math.isinf(total) else int(total),
            initial=trainer.global_step,
            unit=" steps",
            bar_format=None if math.isinf(total) else FORMAT,
            disable=not self._on,
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Move it on when a step is done."""
        assert self._bar is not None
        if trainer.global_step == self._bar.n:
            return
        assert isinstance(pl_module, MLLMModule)
        evaluating = pl_module.evaluating_seconds - self._evaluating
        pace = (time.perf_counter() - self._first - evaluating) / (trainer.global_step - self._first_step)
        told = [f"{1 / pace:.2f}/s"]
        told.append(f"loss {pl_module.step_loss:.3f}")  # not from the logged values, which lie on the device
        self._told = ", ".join(told)
        if (left := self._seconds_left(trainer, pl_module, pace)) is not None:
            share = 100 * (ran := time.perf_counter() - self._began) / (ran + left)
            told.append(f"run {share:.0f} %, {duration(left)} left")
        self._bar.set_postfix_str(", ".join(told), refresh=False)
        self._bar.update(trainer.global_step - self._bar.n)

    def _seconds_left(self, trainer: L.Trainer, module: MLLMModule, pace: float) -> float | None:
        """Of the training, its validations, and the scores after it; ``None`` where no end is known, or no pace."""
        total = trainer.estimated_stepping_batches
        if math.isinf(total):
            return None
        training = pace * (total - trainer.global_step)
        samples = sum(
            times * self._samples.get(phase, 0)
            for phase, times in (("val", round(validations(trainer) * (1 - trainer.global_step / total))), ("test", 1))
        )
        if not module.evaluated_samples:
            return training if not samples else None
        return training + samples * module.evaluating_seconds / module.evaluated_samples

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the bar as it is."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """So that the error stands below it."""
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(self._told)
            self._bar.close()
            self._bar = None
