"""Tasks of lmms-eval as further sources: scored before, during and after training, in the run itself."""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.seed import isolate_rng

from mllm_lit.callbacks.forgetting import fast_dev_run, untuned
from mllm_lit.errors import SettingError, in_range
from mllm_lit.evaluation.sets import Scores
from mllm_lit.loggers import log_scalars
from mllm_lit.module import MLLMModule
from mllm_lit.run_directory import run_directory
from mllm_lit.strategies import in_lockstep
from mllm_lit.tasks.lmms_eval import task_manager


class LmmsEval(L.Callback):
    """Has lmms-eval score its tasks before the first step, at validations, and after the last step.

    Every rank answers a share. Scores are in ``summary.json`` (``lmms_eval``), in the loggers
    (``lmms_eval/TASK/SCORE``) and in the report; they enter no mean. Answers are in ``lmms_eval/PHASE`` of the run
    directory. Random numbers of the training are as without it.

    Args:
        tasks: Names of tasks and groups.
        include_path: A folder with further task files.
        every: Score at each so many validations; 0 for before and after training alone.
        limit: Most documents of each task; ``None`` for all.
        batch_size: Most questions that are answered at once.

    Attributes:
        before: Scores of the backbone, as lmms-eval gives them; ``None`` in a run that went on without them.
        during: Of each scored validation ``step`` and ``scores``.
        after: Scores of the trained model.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        include_path: Path | None = None,
        every: int = 1,
        limit: int | None = None,
        batch_size: int = 8,
    ) -> None:
        self.tasks, self.include_path, self.limit = list(tasks), include_path, limit
        self.every = in_range("LmmsEval.every", every, 0)
        self.batch_size = in_range("LmmsEval.batch_size", batch_size, 1)
        self.before: Scores | None = None
        self.during: list[dict[str, Any]] = []
        self.after: Scores | None = None
        self._validations = 0
        self._manager: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look for the tasks.

        Raises:
            SettingError: lmms-eval or a task is not there, or ranks hold parts of the weights.
        """
        if stage != "fit":
            return
        if in_lockstep(trainer.strategy):
            raise SettingError(
                f"{type(trainer.strategy).__name__} gathers weights in each forward pass, and lmms-eval gives ranks "
                "other numbers of them. Leave LmmsEval out and score the finished run by tools/evaluate.py --lmms_eval."
            )
        self._manager = task_manager(self.tasks, self.include_path)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score the backbone."""
        assert isinstance(pl_module, MLLMModule)
        if fast_dev_run(trainer) or self.before is not None:
            return
        if trainer.global_step:
            rank_zero_info("The checkpoint has no scores of lmms-eval before training; there are none in this run.")
            return
        self.before = self._score(trainer, pl_module, "before", untuned(pl_module))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score at an interval."""
        assert isinstance(pl_module, MLLMModule)
        if trainer.state.fn != "fit" or trainer.sanity_checking or fast_dev_run(trainer) or not self.every:
            return
        self._validations += 1
        if self._validations % self.every == 0:
            scores = self._score(trainer, pl_module, f"step-{trainer.global_step:06}")
            self.during.append({"step": trainer.global_step, "scores": scores})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Score what came out."""
        assert isinstance(pl_module, MLLMModule)
        if not fast_dev_run(trainer) and not trainer.interrupted:
            self.after = self._score(trainer, pl_module, "after")

    def _score(
        self, trainer: L.Trainer, module: MLLMModule, phase: str, state: AbstractContextManager[Any] | None = None
    ) -> Scores:
        from mllm_lit.inference.lmms_model import Answers, evaluate, scores_of, write

        model = Answers(module.tuned(), self.batch_size, trainer.precision_plugin.forward_context)
        with state or nullcontext(), module.as_evaluated(), isolate_rng(), ranks_told(trainer):
            results = evaluate(model, self.tasks, self._manager, self.limit)
        folder = run_directory(trainer)
        if results is not None and folder is not None:
            write(results, folder / "lmms_eval" / phase)
        scores = trainer.strategy.broadcast({} if results is None else scores_of(results))
        flat = {f"lmms_eval/{task}/{key}": value for task, own in scores.items() for key, value in own.items()}
        log_scalars(trainer, flat, trainer.global_step)
        return scores

    def told(self) -> dict[str, Any]:
        """What ``summary.json`` holds."""
        return {"before": self.before, "during": self.during, "after": self.after}

    def state_dict(self) -> dict[str, Any]:
        """Scores so far."""
        return {"before": self.before, "during": self.during, "validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them over."""
        self.before, self.during = state_dict["before"], list(state_dict["during"])
        self._validations = state_dict["validations"]


@contextmanager
def ranks_told(trainer: L.Trainer) -> Iterator[None]:
    """Within it, the environment says what lmms-eval reads there, which Lightning does not always write."""
    told = {"RANK": trainer.global_rank, "LOCAL_RANK": trainer.local_rank, "WORLD_SIZE": trainer.world_size}
    before = {name: os.environ.get(name) for name in told}
    os.environ.update({name: str(value) for name, value in told.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def lmms_eval_of(trainer: L.Trainer) -> dict[str, Any] | None:
    """The scores of a trainer's :class:`LmmsEval`, if it has one."""
    found = [one for one in trainer.callbacks if isinstance(one, LmmsEval)]  # type: ignore[attr-defined]
    return found[0].told() if found else None
