"""Checkpoints of what trains, at an interval and at the end."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class TrainableCheckpoint(ModelCheckpoint):
    """Lightning's checkpoint callback; also writes ``last.ckpt`` when training ends.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        keep: How many to keep beside ``last.ckpt``; -1 for all.
    """

    def __init__(self, every_n_train_steps: int = 100, keep: int = 1) -> None:
        super().__init__(
            filename="{step}", every_n_train_steps=every_n_train_steps, save_top_k=keep, save_last=True, mode="max"
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Write the final state."""
        if not trainer.interrupted and not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
