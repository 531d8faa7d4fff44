"""Scores the target and the held-out sources before, during and after training."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mllm_lit.callbacks.before import ScoresKept
from mllm_lit.callbacks.trajectory import draw_trajectory
from mllm_lit.module import MLLMModule, Record

Scores = dict[str, dict[str, float]]
"""Set -> score name -> points (``nll`` in nats per answer token)."""


class ForgettingCallback(L.Callback):
    """Runs the test sets before the first and after the last step, and keeps the scores of every evaluation.

    The test loop runs inside ``fit``, so that the model is placed and sharded once. ``before`` is the backbone without
    its adapter (the adapter is switched off for it), and is kept in checkpoints: a resumed run does not repeat it.

    Args:
        keep: A folder in which scores and answers of untrained backbones are kept and looked for, so that of many runs
            only the first measures them; ``None`` for none.

    Attributes:
        before: Scores of the backbone, ``None`` until measured.
        during: ``(optimizer step, scores)`` of each validation.
        after: Scores of the trained model.
    """

    def __init__(self, keep: Path | None = None) -> None:
        self.kept = None if keep is None else ScoresKept(keep)
        self.before: Scores | None = None
        self.during: list[tuple[int, Scores]] = []
        self.after: Scores | None = None
        self.phase = ""
        self._nll: dict[str, list[tuple[float, int]]] = {}

    # ---- when ------------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the backbone."""
        assert isinstance(pl_module, MLLMModule)
        assert pl_module.net is not None
        if self.before is None and not fast_dev_run(trainer):
            self.before = self._backbone(trainer, pl_module)
            log_scores(trainer, self.before, "test", step=0)

    def _backbone(self, trainer: L.Trainer, module: MLLMModule) -> Scores:
        log_dir = trainer.log_dir  # A broadcast: every rank has to ask.
        place = None
        # What an adapter does to the backbone's own weights, the name of a place does not tell.
        if self.kept is not None and log_dir is not None and not getattr(module.adapter, "mutates", False):
            place, predictions = self.kept.place(trainer, module), Path(log_dir) / "predictions" / "before"
            if trainer.strategy.broadcast(place.is_dir()):
                rank_zero_info(f"Scores before training: those kept in {place}")
                if trainer.is_global_zero:
                    scores, answers = self.kept.load(place, predictions)
                    draw_answers(trainer, answers)
                return trainer.strategy.broadcast(scores if trainer.is_global_zero else {})
        # No tensor has moved yet, so without the adapter's new modules the model is the backbone.
        with module.adapter.without_new_modules(module.net):  # type: ignore[arg-type]
            scores = self._test(trainer, "before")
        if self.kept is not None and place is not None and trainer.is_global_zero:
            self.kept.save(place, scores, predictions)
        return scores

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score what came out."""
        if not fast_dev_run(trainer) and not trainer.interrupted:
            self.after = self._test(trainer, "after")
            log_scores(trainer, self.after, "test", step=trainer.global_step)
            draw_trajectory(trainer, self.before, self.during, self.after)

    def _test(self, trainer: L.Trainer, phase: str) -> Scores:
        state = trainer.state.fn, trainer.state.stage
        self.phase = phase
        trainer.state.fn, trainer.testing = TrainerFn.TESTING, True
        trainer.test_loop.verbose = False
        try:
            trainer.test_loop.run()
        finally:
            trainer.state.fn, trainer.state.stage = state
        return self._last

    @property
    def last(self) -> Scores:
        """Scores of the latest evaluation."""
        return self._last

    # ---- what ------------------------------------------------------------------------------------------------------

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Collect a batch's answer NLL."""
        self._collect(trainer, outputs, args[2] if len(args) > 2 else 0)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Collect a batch's answer NLL."""
        self._collect(trainer, outputs, args[2] if len(args) > 2 else 0)

    def _collect(self, trainer: L.Trainer, records: list[Record], dataloader_idx: int) -> None:
        name = trainer.datamodule.names[dataloader_idx]  # type: ignore[attr-defined]
        self._nll.setdefault(name, []).extend((record["nll"], record["answer_tokens"]) for record in records)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the scores of all sets."""
        self._last = self._scores(trainer, pl_module)
        if trainer.state.fn == TrainerFn.TESTING and not self.phase:
            log_scores(trainer, self._last, "test", step=trainer.global_step)
            print_scores(trainer, self._last)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Compute the scores of all sets and log them over steps."""
        if trainer.sanity_checking:
            self._nll = {}
            return
        scores = self._scores(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING:
            self.during.append((trainer.global_step, scores))
            draw_trajectory(trainer, self.before, self.during, None)
        else:
            print_scores(trainer, scores)
        for name, values in scores.items():
            for key, value in values.items():
                pl_module.log(f"val/{name}/{key}", value, rank_zero_only=True)
        self._last = scores

    def _scores(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Scores:
        assert isinstance(pl_module, MLLMModule)
        scores = pl_module.pop_scores()
        for name, pairs in self._nll.items():
            sums = [sum(nll * tokens for nll, tokens in pairs), sum(tokens for _, tokens in pairs)]
            total = torch.tensor(sums, dtype=torch.float64, device=pl_module.device)
            if trainer.world_size > 1:
                total = pl_module.all_gather(total).view(-1, 2).sum(0)  # type: ignore[union-attr]
            scores[name]["nll"] = float(total[0] / total[1])
        self._nll = {}
        return scores

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Scores so far."""
        return {"before": self.before, "during": self.during}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the interrupted run."""
        self.before, self.during = state_dict["before"], list(state_dict["during"])


def fast_dev_run(trainer: L.Trainer) -> bool:
    """Whether this is a smoke test that reports nothing."""
    return bool(getattr(trainer, "fast_dev_run", False))


def log_scores(trainer: L.Trainer, scores: Scores, prefix: str, step: int) -> None:
    """Send scores to the loggers."""
    flat = {f"{prefix}/{name}/{key}": value for name, values in scores.items() for key, value in values.items()}
    for logger in trainer.loggers:
        logger.log_metrics(flat, step=step)


def draw_answers(trainer: L.Trainer, answers: dict[str, list[Record]]) -> None:
    """The pictures of an evaluation that was not run."""
    from mllm_lit.callbacks.predictions import PredictionsCallback, show

    rows: Any = trainer.datamodule.eval_rows["test"]  # type: ignore[attr-defined]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, PredictionsCallback):
            for name, samples in rows.items():
                pairs = [pair for pair in zip(samples, answers[name], strict=True) if pair[0].images]
                if pairs:
                    show(trainer, f"{name}/before", pairs[: callback.images])


def print_scores(trainer: L.Trainer, scores: Scores) -> None:
    """One line a set, on rank zero; the first is begun below a progress bar."""
    if trainer.is_global_zero:
        lines = (f"{name}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()) for name, values in scores.items())
        print("", *lines, sep="\n", flush=True)
