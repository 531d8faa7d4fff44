"""Ends a run: saves what was trained, writes ``summary.json``, logs settings and final scores, prints the table."""

import resource
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from rich.console import Console

from mllm_lit import summary
from mllm_lit.callbacks.forgetting import ForgettingCallback, fast_dev_run
from mllm_lit.callbacks.lmms_eval import lmms_eval_of
from mllm_lit.callbacks.sequence import log_sequence
from mllm_lit.errors import writing
from mllm_lit.evaluation.records import SAFE
from mllm_lit.importance.files import save_buffers
from mllm_lit.loggers import log_scalars, log_settings
from mllm_lit.module import MLLMModule
from mllm_lit.run_directory import run_directory
from mllm_lit.seed import run_seed
from mllm_lit.tensors import count_of

CARD = "README.md"
"""A model card; peft puts an empty one there."""


class SummaryCallback(L.Callback):
    """Reports what was learned, what was forgotten and what it cost.

    Args:
        experiment: The run's name.
        forgetting: Where the scores come from; stands before this callback in the trainer's list.
        hparams: The settings that loggers show, flat.
    """

    def __init__(self, experiment: str, forgetting: ForgettingCallback, hparams: dict[str, Any] | None = None) -> None:
        self.experiment, self.forgetting, self.hparams = experiment, forgetting, hparams or {}
        self.seconds = 0.0
        self._since: float | None = None
        self._logged = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the settings."""
        assert isinstance(pl_module, MLLMModule)
        log_settings(trainer, self._settings(pl_module))

    # Only time spent in training counts, so evaluation stops the clock.

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Start the clock after an evaluation or at the beginning."""
        if self._since is None:
            self._since = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log the throughput since training began, evaluation left out."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if self._since is None or not every or step % every or step == self._logged:
            return
        assert isinstance(pl_module, MLLMModule)
        self._logged = step
        seconds = self.seconds + time.perf_counter() - self._since
        rate = pl_module.tokens * trainer.world_size / seconds
        log_scalars(trainer, {"train/tokens_per_second": rate}, step)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock."""
        self._stop()

    def _stop(self) -> None:
        if self._since is not None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds += time.perf_counter() - self._since
            self._since = None

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock: what follows the last epoch is evaluation."""
        self._stop()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save and report."""
        assert isinstance(pl_module, MLLMModule)
        assert pl_module.net is not None
        self._stop()
        folder = run_directory(trainer)
        if fast_dev_run(trainer) or folder is None:
            return
        size = sum(parameter.nbytes for _, parameter in pl_module.trainable())
        rule = pl_module.importance if pl_module.importance and pl_module.importance.accumulates else None
        with writing(folder / "adapter", size * (1 if rule is None else 2), SAFE):
            pl_module.adapter.save(pl_module.net, folder / "adapter", is_main=trainer.is_global_zero)
            if rule is not None:
                save_buffers(rule, folder, is_main=trainer.is_global_zero)
        before, after = self.forgetting.before, self.forgetting.after
        if not trainer.is_global_zero or before is None or after is None:
            return
        result = summary.summarise(
            experiment=self.experiment,
            seed=run_seed(),
            parts={
                "backbone": str(pl_module.backbone.path),
                "adapter": type(pl_module.adapter).__name__,
                "objective": None if pl_module.objective is None else type(pl_module.objective).__name__,
                "importance": None if pl_module.importance is None else type(pl_module.importance).__name__,
            },
            headlines=self.forgetting.headlines,
            others=self.forgetting.others,
            before=before,
            during=self.forgetting.during,
            after=after,
            parameters=parameters(pl_module),
            cost=self._cost(trainer, pl_module),
            precision={"used": str(trainer.precision), "why": getattr(trainer, "precision_reason", "as set")},
            kl_to_before=pl_module.kl_to_before,
            counts=self.forgetting.counts,
            lmms_eval=lmms_eval_of(trainer),
        )
        path = summary.write(result, folder)
        with writing(folder / "adapter" / CARD, None, SAFE):
            files = sorted(file.name for file in (folder / "adapter").iterdir() if file.name != CARD)
            (folder / "adapter" / CARD).write_text(summary.card(result, files), encoding="utf-8")
        self._log(trainer, pl_module, result)
        log_sequence(trainer, pl_module.start.earlier, result)
        console = Console()
        console.print(summary.table(result))
        console.print(f"Run directory: {path.parent}", highlight=False, soft_wrap=True)
        console.print(self._page(trainer, path.parent), highlight=False, markup=False, soft_wrap=True)

    def _page(self, trainer: L.Trainer, folder: Path) -> str:
        """Write the run's page, and say where it is; the run has succeeded, whatever becomes of the page."""
        try:
            from mllm_lit.reports.predictions import samples_of
            from mllm_lit.reports.runs import write_run

            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            return f"Report: {write_run(folder, samples_of({one.name: one.samples for one in data.sets['test']}))}"
        except Exception as error:
            return f"Report: {folder / 'report.html'} was not written: {type(error).__name__}: {error}"

    def _cost(self, trainer: L.Trainer, module: MLLMModule) -> dict[str, float]:
        tokens = module.tokens * trainer.world_size
        count = parameters(module)
        if module.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(module.device)
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "train_seconds": self.seconds,
            "steps": trainer.global_step,
            "label_tokens": module.label_tokens,
            "tokens": tokens,
            "tokens_per_second": tokens / self.seconds if self.seconds else 0.0,
            "peak_memory_bytes": peak,
            # Forward, and backward through activations, for every parameter; weight gradients for the trained ones
            # (the counting of arXiv 2406.05130).
            "train_flops": 2 * (count["total"] + count["trainable"]) * tokens,
        }

    def _log(self, trainer: L.Trainer, module: MLLMModule, result: dict[str, Any]) -> None:
        metrics = {f"final/{key}": value for key, value in (result["tradeoff"] or {}).items() if value is not None}
        metrics["final/target"] = result["target"]["after"]
        metrics |= {f"final/{name}": row["after"] for name, row in (result["sources"] | result["others"]).items()}
        log_settings(trainer, self._settings(module), metrics, trainer.global_step)

    def _settings(self, module: MLLMModule) -> dict[str, Any]:
        """The settings, led by what runs differ in most; TensorBoard sorts them, capital letters first."""
        parts = {"Adapter": module.adapter, "Objective": module.objective, "Rule": module.importance}
        named = {name: "none" if part is None else type(part).__name__ for name, part in parts.items()}
        return {**named, "Learning rate": module.adapter.lr, **self.hparams}

    def state_dict(self) -> dict[str, Any]:
        """Seconds trained so far."""
        if self._since is not None:
            self._stop()
            self._since = time.perf_counter()
        return {"seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the count of an interrupted run."""
        self.seconds = state_dict["seconds"]


def parameters(module: MLLMModule) -> dict[str, int]:
    """How many parameters there are, the adapter's counted in, and how many of them train."""
    assert module.net is not None
    counts = [(count_of(p), p.requires_grad) for p in module.net.parameters()]
    return {"total": sum(n for n, _ in counts), "trainable": sum(n for n, trained in counts if trained)}
