"""Prints the first batch as the model sees it, before anything is scored or trained."""

from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng

from mllm_lit.data.show import LEGEND, views

SHOWN = 3
"""Sequences of the batch."""


class ShowBatch(L.Callback):
    """Shows sequences of the first training batch, and goes on (``--show_batch``)."""

    @rank_zero_only
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collate the rows of the batch once more; the order of training and its random numbers stay what they were."""
        module: Any = pl_module
        loader: Any = trainer.train_dataloader
        sampler = loader.batch_sampler
        start = sampler.start  # iterating takes it
        numbers = next(iter(sampler))
        sampler.skip(start)
        with isolate_rng():
            batch = loader.collate_fn([loader.dataset[number] for number in numbers])
        shown = list(views(batch, module.collate))
        print(f"The first batch: {len(batch)} rows in {len(shown)} sequences. {LEGEND}\n")
        print("\n\n".join(shown[:SHOWN]) + "\n")
