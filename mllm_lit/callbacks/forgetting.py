"""Says when target, sources and other sets are scored: before, during and after training."""

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_info
from rich.console import Console
from tqdm.auto import tqdm

from mllm_lit.backbones.callback import validations
from mllm_lit.callbacks.kept import ScoresKept
from mllm_lit.callbacks.overview import known_scores, overview
from mllm_lit.callbacks.trajectory import draw_trajectory
from mllm_lit.errors import SettingError, write_whole
from mllm_lit.evaluation.evaluator import Evaluator
from mllm_lit.evaluation.sets import Result, Scores
from mllm_lit.loggers import log_picture, log_scalars
from mllm_lit.metrics import tradeoff
from mllm_lit.module import MLLMModule
from mllm_lit.run_directory import one_run_at_a_time, run_directory
from mllm_lit.summary import scores_table


class ForgettingCallback(L.Callback):
    """Scores the test sets before the first and after the last step, and keeps the scores of every evaluation.

    ``before`` is the backbone without its adapter (the adapter is switched off for it), and is kept in checkpoints: a
    resumed run does not repeat it. If that run scores other sets, samples or answers than before, it says so and
    measures the backbone again, on the weights that were there before the checkpoint's; the scores of earlier steps
    are then left out.

    Args:
        keep: A folder in which scores and answers of untrained backbones are kept and looked for, so that of many runs
            only the first measures them; ``None`` for none.
        images: Pictures with question, answer and prediction shown of each set.

    Attributes:
        before: Scores of the backbone, ``None`` until measured.
        start: Likewise, of the samples of the validations; ``None`` if there are none.
        during: Of each validation ``step`` (of the optimizer), ``epoch`` (passes over the training rows), ``scores``.
        after: Scores of the trained model.
        last: Of the latest ``trainer.test``.
        counts: Set -> how many samples were scored after training.
        headlines: Target and sources -> name of the score that a table shows, the target first.
        others: Likewise, of the sets that are neither.
    """

    scores_before_and_after = True
    """Tells what counts the looks at pictures."""

    def __init__(self, keep: Path | None = None, images: int = 8) -> None:
        self.kept = None if keep is None else ScoresKept(keep)
        self.images = images
        self.before: Scores | None = None
        self.start: Scores | None = None
        self.during: list[dict[str, Any]] = []
        self.after: Scores | None = None
        self.last: Scores = {}
        self.counts: dict[str, int] = {}
        self.headlines: dict[str, str] = {}
        self.others: dict[str, str] = {}
        self._measured: dict[str, dict[str, str]] = {}
        self._untrained: dict[str, torch.Tensor] = {}
        self._changed: dict[str, bool] = {}
        self._due = False

    # ---- when ------------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ask to see a checkpoint while the weights are still the backbone's."""
        assert isinstance(pl_module, MLLMModule)
        if stage == "fit":
            pl_module.on_checkpoint = partial(self._compare, trainer, pl_module)
            if trainer.limit_test_batches == 0:
                raise SettingError(
                    "trainer.limit_test_batches is 0, so nothing could be scored before and after training. Leave it "
                    "out, or score less by data.max_eval_samples and the sources' max_samples."
                )
            if self.kept is not None and trainer.is_global_zero:
                self.kept.check()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the backbone, and make up for a validation that an interruption has cost."""
        assert isinstance(pl_module, MLLMModule)
        if fast_dev_run(trainer):
            return
        evaluator = evaluator_of(trainer, "test")
        self.headlines, self.others = evaluator.headlines(), evaluator.others()
        self._measured = self._measured or self._digests(trainer, pl_module)
        if self.before is None:
            with swapped(pl_module, self._untrained):
                result = self._backbone(trainer, pl_module, evaluator)
                if self.start is None and validations(trainer):
                    self.start = self._start(trainer, pl_module, evaluator, result)
            self._untrained = {}
            self.before = result.scores
            log_scores(trainer, self.before, "test", step=0)
            log_scores(trainer, self.start or {}, "val", step=0)
            first = self.start or self.before
            log_scalars(trainer, overview(self.headlines, first, first), 0)
            show(trainer, result, evaluator, self.images)
        if self._due:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Keep and draw the scores of a validation."""
        if not isinstance(outputs, Result):
            return
        if trainer.state.fn == "fit":
            told = {"step": trainer.global_step, "epoch": epochs(trainer), "scores": outputs.scores}
            self.during.append(told)
            log_scalars(trainer, overview(self.headlines, self.start, outputs.scores), trainer.global_step)
            draw_trajectory(trainer, batch.headlines(), self.before, self._steps(), None)
            if trainer.is_global_zero:
                tqdm.write(in_a_line(trainer.global_step, self.headlines, outputs.scores))  # above the bars
            show(trainer, outputs, batch, self.images, "during")
        else:
            report(trainer, outputs, batch)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score what came out."""
        assert isinstance(pl_module, MLLMModule)
        if fast_dev_run(trainer) or trainer.interrupted:
            return
        evaluator = evaluator_of(trainer, "test")
        result = pl_module.evaluate(evaluator, "after", trainer.limit_test_batches)
        self.after = result.scores
        self.counts = {name: len(records) for name, records in result.records.items()}
        log_scores(trainer, self.after, "test", step=trainer.global_step)
        if self.start is None and not self.during:
            log_scalars(trainer, overview(self.headlines, self.before, self.after), trainer.global_step)
        show(trainer, result, evaluator, self.images)
        draw_trajectory(trainer, self.headlines, self.before, self._steps(), self.after)

    def _steps(self) -> list[tuple[int, Scores]]:
        return [(one["step"], one["scores"]) for one in self.during]

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Log, draw and print."""
        self.last = outputs.scores
        log_scores(trainer, outputs.scores, "test", step=trainer.global_step)
        self.on_predict_batch_end(trainer, pl_module, outputs, batch)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *args: Any
    ) -> None:
        """Draw and print."""
        show(trainer, outputs, batch, self.images)
        report(trainer, outputs, batch)

    # ---- the backbone ----------------------------------------------------------------------------------------------

    def _backbone(self, trainer: L.Trainer, module: MLLMModule, evaluator: Evaluator) -> Result:
        folder = run_directory(trainer)
        # What an adapter or earlier training did to the backbone's own weights, the name of a place does not tell.
        changed = getattr(module.adapter, "mutates", False) or module.moved
        if self.kept is None or folder is None or changed:
            return self._scored(trainer, module, evaluator)
        place, predictions = self.kept.place(trainer, module, evaluator), folder / "predictions" / "before"
        with one_run_at_a_time(trainer, place):
            if trainer.strategy.broadcast(place.is_dir()):
                rank_zero_info(f"Scores before training: those kept in {place}")
                found = self.kept.load(place, predictions) if trainer.is_global_zero else None
                return trainer.strategy.broadcast(found)  # type: ignore[return-value]
            result = self._scored(trainer, module, evaluator)
            if trainer.is_global_zero:
                self.kept.save(place, result, predictions)
        return result

    def _scored(self, trainer: L.Trainer, module: MLLMModule, evaluator: Evaluator) -> Result:
        with untuned(module):
            return module.evaluate(evaluator, "before", trainer.limit_test_batches)

    def _start(self, trainer: L.Trainer, module: MLLMModule, tested: Evaluator, result: Result) -> Scores:
        """What the backbone scores on the samples of the validations; sources' are mostly among those just answered."""
        evaluator, limit = evaluator_of(trainer, "val"), trainer.limit_val_batches
        known = {} if isinstance(limit, int) else known_scores(evaluator, tested, result)
        names = [one.name for one in evaluator.sets]
        evaluator.sets = [one for one in evaluator.sets if one.name not in known]
        if evaluator.sets:
            with untuned(module):
                known |= module.evaluate(evaluator, "step-000000", limit).scores
        return {name: known[name] for name in names}

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
                    f"samples, scorer or length of answers), so the scores {again}."
                )
            if changed and phase == "test":
                # Modules of a new adapter are switched off for it, so only the backbone's tensors matter.
                own, every = module.adapter.attached_layout().base_name, module.starts_from_adapter
                named = ((n, p) for n, p in module.trainable() if every or own(n) in module.adapter.bare_names)
                self._untrained = {name: p.detach().clone() for name, p in named}
                self.before = None
            if changed and phase == "val":
                self.during, self.start = [], None
            self._changed[phase] = bool(changed)

    def _digests(self, trainer: L.Trainer, module: MLLMModule) -> dict[str, dict[str, str]]:
        limits = {"test": trainer.limit_test_batches, "val": trainer.limit_val_batches}
        return {
            phase: {
                one.name: one.digest(module.max_new_tokens, limit, moved=True)
                for one in evaluator_of(trainer, phase).sets
            }
            for phase, limit in limits.items()
        }

    # ---- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Scores so far, and of what."""
        return {"before": self.before, "start": self.start, "during": self.during, "measured": self._measured}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the scores of the interrupted run, as far as they are of what is scored now."""
        if not self._changed.get("test"):
            self.before = state_dict["before"]
        if not self._changed.get("val"):
            self.during, self.start = list(state_dict["during"]), state_dict.get("start")

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note whether a validation of this step is still to come."""
        loop = trainer.fit_loop
        done = bool(self.during) and self.during[-1]["step"] == trainer.global_step
        due = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
        checkpoint["validation_due"] = due and not done

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Read it back."""
        self._due = checkpoint.get("validation_due", False)


def evaluator_of(trainer: L.Trainer, phase: str) -> Evaluator:
    """The data module's evaluator of the ``test`` or ``val`` sets."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    evaluator: Evaluator = data.evaluator(phase)
    return evaluator


def epochs(trainer: L.Trainer) -> float:
    """How often all training rows have been trained on, a part of an epoch counted in."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready / trainer.num_training_batches


def untuned(module: MLLMModule) -> AbstractContextManager[Any]:
    """Within it, a model of which no tensor has moved yet is the backbone: the adapter's new modules are off."""
    return nullcontext() if module.starts_from_adapter else module.adapter.without_new_modules(module.net)  # type: ignore[arg-type]


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
    log_scalars(trainer, flat, step)


def show(trainer: L.Trainer, result: Result, evaluator: Evaluator, count: int, tag: str | None = None) -> None:
    """Log pictures with their texts, for each set as ``SET/PHASE``.

    Args:
        trainer: Whose loggers get them.
        result: Of the evaluation.
        evaluator: Which has the samples.
        count: Pictures of each set.
        tag: In place of the phase: one for all steps, so that a slider runs over training.
    """
    from mllm_lit.evaluation.grid import grid

    for one in evaluator.sets:
        told = {record["id"]: record for record in result.records[one.name]}  # of a part of the set, if it is limited
        pairs = [(sample, told[sample.id]) for sample in one.samples if sample.images and sample.id in told][:count]
        if pairs:
            log_picture(trainer, f"{one.name}/{tag or result.phase}", partial(grid, pairs), trainer.global_step)


def in_a_line(step: int, headlines: Mapping[str, str], scores: Scores) -> str:
    """The scores of a validation, the target first.

    >>> in_a_line(100, {"one": "accuracy", "two": "exact"}, {"one": {"accuracy": 30}, "two": {"exact": 60}})
    'step 100: one 30.0 · two 60.0 · A^S 60.0 · H 40.0'
    """
    points = {name: scores[name][key] for name, key in headlines.items()}
    target, *sources = points.values()
    means = tradeoff(target, sources) if sources else {}
    told = points | {label: means[key] for label, key in (("A^S", "A_S"), ("H", "H")) if means}
    return f"step {step}: " + " · ".join(f"{name} {value:.1f}" for name, value in told.items())


def report(trainer: L.Trainer, result: Result, evaluator: Evaluator) -> None:
    """Print the scores as a table, write them beside the answers, and say where that is; on rank zero."""
    folder = run_directory(trainer)
    if not trainer.is_global_zero:
        return
    console = Console()
    console.print(scores_table(result, {**evaluator.headlines(), **evaluator.others()}))
    if folder is not None and not fast_dev_run(trainer):
        place = folder / "predictions" / result.phase
        write_whole(place / "scores.json", json.dumps(result.scores, indent=1) + "\n")
        console.print(f"Answers and scores: {place}", highlight=False, soft_wrap=True)
