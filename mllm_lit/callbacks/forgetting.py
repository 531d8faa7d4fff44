"""Scores the target and the held-out sources before, during and after training."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info

from mllm_lit.callbacks.before import ScoresKept, set_digests
from mllm_lit.callbacks.run_directory import run_directory
from mllm_lit.callbacks.trajectory import draw_trajectory
from mllm_lit.module import MLLMModule, Record

Scores = dict[str, dict[str, float]]
"""Set -> score name -> points (``nll`` in nats per answer token)."""


class ForgettingCallback(L.Callback):
    """Runs the test sets before the first and after the last step, and keeps the scores of every evaluation.

    The test loop runs inside ``fit``, so that the model is placed and sharded once. ``before`` is the backbone without
    its adapter (the adapter is switched off for it), and is kept in checkpoints: a resumed run does not repeat it. If
    that run scores other sets, rows or answers than before, it says so and measures the backbone again, on the weights
    that were there before the checkpoint's; the scores of earlier steps are then left out.

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
        self._measured: dict[str, dict[str, str]] = {}
        self._untrained: dict[str, torch.Tensor] = {}
        self._changed: dict[str, bool] = {}
        self._due = False
        self._nll: dict[str, list[tuple[float, int]]] = {}

    # ---- when ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask to see a checkpoint while the weights are still the backbone's."""
        assert isinstance(pl_module, MLLMModule)
        if stage == "fit":
            pl_module.on_checkpoint = partial(self._compare, trainer, pl_module)

    def _compare(self, trainer: L.Trainer, module: MLLMModule, checkpoint: dict[str, Any]) -> None:
        stored = checkpoint["callbacks"].get(self.state_key, {}).get("measured", {})
        self._measured = self._digests(trainer, module)
        for phase, mine in self._measured.items():
            theirs = stored.get(phase, mine)
            changed = sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))
            if changed:
                again = (
                    "before training are measured again" if phase == "test" else "during training so far are left out"
                )
                rank_zero_info(
                    f"The {phase} sets {', '.join(changed)} are scored otherwise than in the checkpoint's run (other "
                    f"rows, scorer or length of answers), so the scores {again}."
                )
            if changed and phase == "test":
                # Modules of a new adapter are switched off for it, so only the backbone's tensors matter.
                own, every = module.adapter.attached_layout().base_name, module.starts_from_adapter
                named = ((n, p) for n, p in module.trainable() if every or own(n) in module.adapter.bare_names)
                self._untrained = {name: p.detach().clone() for name, p in named}
                self.before = None
            if changed and phase == "val":
                self.during = []
            self._changed[phase] = bool(changed)

    def _digests(self, trainer: L.Trainer, module: MLLMModule) -> dict[str, dict[str, str]]:
        return {phase: set_digests(trainer, module, phase, moved=True) for phase in ("test", "val")}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the backbone, and make up for a validation that an interruption has cost."""
        assert isinstance(pl_module, MLLMModule)
        assert pl_module.net is not None
        if fast_dev_run(trainer):
            return
        self._measured = self._measured or self._digests(trainer, pl_module)
        if self.before is None:
            with swapped(pl_module, self._untrained):
                self.before = self._backbone(trainer, pl_module)
            self._untrained = {}
            log_scores(trainer, self.before, "test", step=0)
        if self._due:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def _backbone(self, trainer: L.Trainer, module: MLLMModule) -> Scores:
        folder = run_directory(trainer)
        place = None
        # What an adapter does to the backbone's own weights, the name of a place does not tell.
        if self.kept is not None and folder is not None and not getattr(module.adapter, "mutates", False):
            place, predictions = self.kept.place(trainer, module), folder / "predictions" / "before"
            if trainer.strategy.broadcast(place.is_dir()):
                rank_zero_info(f"Scores before training: those kept in {place}")
                if trainer.is_global_zero:
                    scores, answers = self.kept.load(place, predictions)
                    draw_answers(trainer, answers)
                return trainer.strategy.broadcast(scores if trainer.is_global_zero else {})
        # No tensor has moved yet, so without the adapter's new modules the model is the backbone.
        off = nullcontext() if module.starts_from_adapter else module.adapter.without_new_modules(module.net)  # type: ignore[arg-type]
        with off:
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
        """Scores so far, and of what."""
        return {"before": self.before, "during": self.during, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the interrupted run, as far as they are of what is scored now."""
        if not self._changed.get("test"):
            self.before = state_dict["before"]
        if not self._changed.get("val"):
            self.during = list(state_dict["during"])

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether a validation of this step is still to come."""
        loop = trainer.fit_loop
        done = bool(self.during) and self.during[-1][0] == trainer.global_step
        due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        checkpoint["validation_due"] = due and not done

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read it back."""
        self._due = checkpoint.get("validation_due", False)


@contextmanager
def swapped(module: MLLMModule, tensors: dict[str, torch.Tensor]) -> Iterator[None]:
    """Within it, some of the parameters hold other values."""
    parameters = dict(module.trainable()) if tensors else {}
    with torch.no_grad():
        trained = {name: parameters[name].detach().clone() for name in tensors}
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)
        try:
            yield
        finally:
            for name, tensor in trained.items():
                parameters[name].copy_(tensor)


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
                told = {record["id"]: record for record in answers[name]}  # of a part of the set, if it is limited
                pairs = [(row, told[row.id]) for row in samples if row.images and row.id in told]
                if pairs:
                    show(trainer, f"{name}/before", pairs[: callback.images])


def print_scores(trainer: L.Trainer, scores: Scores) -> None:
    """One line a set, on rank zero; the first is begun below a progress bar."""
    if trainer.is_global_zero:
        lines = (f"{name}: " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()) for name, values in scores.items())
        print("", *lines, sep="\n", flush=True)
