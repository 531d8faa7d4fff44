"""Writes what the model answered: JSON lines for every evaluated set, and a picture grid for TensorBoard."""

import json
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.callbacks.run_directory import run_directory
from mllm_lit.errors import writing
from mllm_lit.module import Record

SAFE = "Checkpoints that were written before are safe: go on from them with --ckpt_path last."


class PredictionsCallback(L.Callback):
    """``predictions/<phase>/<set>.jsonl`` in the run directory, one row a sample, in the split's order.

    Args:
        images: Pictures with question, answer and prediction shown per set in TensorBoard.
    """

    def __init__(self, images: int = 8) -> None:
        self.images = images
        self._records: dict[str, list[Record]] = {}
        self._shown: dict[str, list[tuple[Any, Record]]] = {}

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Collect."""
        self._collect(trainer, outputs, *args)

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any
    ) -> None:
        """Collect."""
        if not trainer.sanity_checking:
            self._collect(trainer, outputs, *args)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *args: Any) -> None:
        """Collect."""
        self._collect(trainer, outputs, *args)

    def _collect(self, trainer: L.Trainer, outputs: list[Record], batch: Any, batch_idx: int, loader: int = 0) -> None:
        name = trainer.datamodule.names[loader]  # type: ignore[attr-defined]
        self._records.setdefault(name, []).extend(outputs)
        shown = self._shown.setdefault(name, [])
        for sample, record in zip(batch.samples, outputs, strict=False):
            if len(shown) < self.images and sample.images:
                shown.append((sample, record))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write."""
        self._write(trainer, phase_of(trainer) or "test")

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write."""
        if not trainer.sanity_checking:
            fitting = trainer.state.fn == "fit"
            self._write(trainer, f"step-{trainer.global_step:06d}" if fitting else "validate")

    def on_predict_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write."""
        self._write(trainer, "predict")

    def _write(self, trainer: L.Trainer, phase: str) -> None:
        ranks: list[Any] = [self._records]
        if trainer.world_size > 1:
            ranks = [None] * trainer.world_size
            torch.distributed.all_gather_object(ranks, self._records)
        shown, self._records, self._shown = self._shown, {}, {}
        run = run_directory(trainer)
        if not trainer.is_global_zero or run is None:
            return
        folder = run / "predictions" / phase
        for name in ranks[0]:
            # Rank r scored rows r, r + world, ...: interleaving restores the split's order.
            columns = [rank.get(name, []) for rank in ranks]
            rows = [column[i] for i in range(max(map(len, columns))) for column in columns if i < len(column)]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            path = folder / f"{name}.jsonl"
            with writing(path, len(text.encode()), SAFE):
                folder.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
        for name, pairs in shown.items():
            if pairs:
                show(trainer, f"{name}/{phase_tag(phase)}", pairs)


def phase_of(trainer: L.Trainer) -> str:
    """``before`` or ``after`` inside a fit, else the empty string."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, ForgettingCallback):
            return callback.phase
    return ""


def phase_tag(phase: str) -> str:
    """One TensorBoard tag for all steps, so that its slider runs over training."""
    return "during" if phase.startswith("step-") else phase


def show(trainer: L.Trainer, tag: str, pairs: list[tuple[Any, Record]]) -> None:
    """Add a grid of pictures with their texts to TensorBoard."""
    from mllm_lit.callbacks.grid import grid

    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(tag, grid(pairs), trainer.global_step, dataformats="HWC")
