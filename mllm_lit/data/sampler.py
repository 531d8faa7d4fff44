"""The order of training rows: seeded, grouped by length, split over ranks, and able to start anywhere."""

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of row indices for one rank.

    Rows are shuffled, sorted by length within windows of ``window`` global batches (so a batch holds rows of similar
    length and little padding), and the batches shuffled again. The order is a function of seed and epoch alone, so
    a resumed run goes on where it stopped. No row is dropped; if the last batch has fewer rows than there are ranks,
    its rows are repeated so that every rank takes part in the step.

    Args:
        lengths: Length of every row, in any unit.
        batch_size: Rows per batch and rank.
        seed: The run's seed.
        rank: This process's rank, out of ``world_size``.
        world_size: Number of ranks.
        window: Global batches per sorting window; 1 switches the grouping off.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 16,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}, expected at least 1.")
        self.lengths = torch.as_tensor(lengths)
        self.batch_size, self.seed, self.rank, self.world_size, self.window = batch_size, seed, rank, world_size, window
        self.epoch = 0
        self.start = 0

    @property
    def sampler(self) -> "TrainBatchSampler":
        """Itself: where Lightning looks for ``set_epoch``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose order is iterated next."""
        self.epoch = epoch

    def skip(self, batches: int) -> None:
        """Leave out the first ``batches`` of the next iteration: they were trained on before an interruption."""
        self.start = batches

    def __len__(self) -> int:
        return -(-len(self.lengths) // (self.batch_size * self.world_size))

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator)
        step = self.batch_size * self.world_size
        batches: list[torch.Tensor] = []
        for window in torch.split(order, step * self.window):
            if self.window > 1:
                window = window[torch.argsort(self.lengths[window], stable=True)]
            batches += torch.split(window, step)
        start, self.start = self.start, 0
        for i in torch.randperm(len(batches), generator=generator)[start:].tolist():
            rows = batches[i]
            if len(rows) < self.world_size:
                rows = rows.repeat(-(-self.world_size // len(rows)))[: self.world_size]
            yield rows[self.rank :: self.world_size].tolist()
