"""Says at the start of a run what each role of the backbone holds and trains, and looks after the vision cache."""

from collections.abc import Callable, Iterable
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console

from mllm_lit.backbones.report import parameter_report

PROBED_ROWS = 4


class BackboneCallback(L.Callback):
    """Prints the table of parameters and the precision, and logs the table; stands first, ahead of what evaluates."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Report, and switch off a vision cache that could never be of use."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        report = parameter_report(pl_module.net, pl_module.loaded.layout, groups)
        if trainer.is_global_zero:
            title = f"{type(pl_module.loaded.model).__name__} from {pl_module.loaded.source}"
            precision = f"precision: {trainer.precision} ({getattr(trainer, 'precision_reason', 'as set')})"
            Console().print(f"{title}\n{report}\n{precision}", highlight=False, markup=False, soft_wrap=True)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_text("parameters", report, trainer.global_step)
        if pl_module.vision_cache is not None:
            loader: Any = trainer.train_dataloader
            rows = (row for row in loader.dataset if row.images)
            if pictures_change(loader.collate_fn, [row for row, _ in zip(rows, range(PROBED_ROWS), strict=False)]):
                pl_module.vision_cache.detach("training pictures are augmented, so none is seen twice.")


def pictures_change(collate: Callable[[list[Any]], Any], rows: Iterable[Any], times: int = 4) -> bool:
    """Whether a collator makes other pixels of the same row each time, as one that augments does.

    The random states of Python, NumPy and torch are left as they were.
    """
    with isolate_rng():
        for row in rows:
            first, *others = (collate([row]).inputs["pixel_values"] for _ in range(times))
            if not all(torch.equal(other, first) for other in others):
                return True
    return False
