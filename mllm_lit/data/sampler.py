"""The order of training rows: seeded, grouped by length, split over ranks, and able to start anywhere."""

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler


@dataclass(frozen=True)
class Unit:
    """Rows that are in one batch.

    Attributes:
        rows: Their numbers.
        tokens: In all, what they share counted once.
        cost: Of the room of a batch: rows, or tokens.
    """

    rows: list[int]
    tokens: int
    cost: int


class TrainBatchSampler(Sampler[list[int]]):
    """Batches of row indices for one rank.

    Units (a row, or the rows on one picture) are put into batches by best fit, the largest first. Which places there
    are is settled once; which unit takes which place of its size is drawn in each epoch, in windows of ``window``
    global batches sorted by length, so that a batch holds units of similar length and little padding. The batches are
    shuffled again. The order is a function of seed and epoch alone, so a resumed run goes on where it stopped, and all
    epochs have as many batches. No row is dropped. The last batches are cut in two until every rank has one; where they
    have fewer rows than there are ranks, rows are repeated. Rows on their own are in the same steps whatever the ranks.

    Args:
        lengths: Tokens of every row.
        batch_size: Rows per batch and rank.
        seed: The run's seed.
        rank: This process's rank, out of ``world_size``.
        world_size: Number of ranks.
        window: Global batches per sorting window; 1 switches the grouping off.
        groups: Number of the group that each row is in; a batch has whole groups, unless one is larger than a batch.
            ``None`` for rows on their own.
        shared: How many of a row's tokens it has in common with its group.
        batch_tokens: In place of ``batch_size``, tokens per batch and rank.
        padded: A batch has as many tokens as units times the longest of them; else their sum.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        window: int = 16,
        groups: Sequence[int] | None = None,
        shared: Sequence[int] | None = None,
        batch_tokens: int | None = None,
        padded: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"data.batch_size is {batch_size}, expected at least 1.")
        if batch_tokens is not None and max(lengths) > batch_tokens:
            raise ValueError(f"data.batch_tokens is {batch_tokens}, but a row has {max(lengths)} tokens.")
        self.seed, self.rank, self.world_size, self.window = seed, rank, world_size, window
        self.epoch = self.start = 0
        members: dict[int, list[int]] = defaultdict(list)
        for row, group in enumerate(range(len(lengths)) if groups is None else groups):
            members[group].append(row)
        common = [0] * len(lengths) if shared is None else shared
        self.units: list[Unit] = []
        for rows in members.values():
            self.units += _units(rows, lengths, common, batch_size, batch_tokens)
        costs = sorted((unit.cost for unit in self.units), reverse=True)
        if batch_tokens is not None and padded:
            self._batches = _padded_places(costs, batch_tokens)
        else:
            self._batches = _places(costs, batch_size if batch_tokens is None else batch_tokens)
        self._plain = groups is None and batch_tokens is None
        self._cut_evenly()

    def _cut_evenly(self) -> None:
        """Cut the last batches, and then groups, in two until every rank has as many batches, or repeat the last."""
        whole = len(self._batches) // self.world_size * self.world_size
        self._repeated = 0
        while (len(self._batches) + self._repeated) % self.world_size:
            fullest = max(self._batches[whole:], key=len)
            if len(fullest) == 1 and not self._plain:
                fullest = max(self._batches, key=len)
            if len(fullest) > 1:
                half = fullest[1::2]
                fullest[:] = fullest[::2]
                self._batches.append(half)
                continue
            alone = {batch[0] for batch in self._batches[whole:]}
            at = max((i for i, unit in enumerate(self.units) if unit.cost in alone), key=self._rows)
            unit = self.units[at]
            if half_rows := len(unit.rows) // 2:
                self.units[at] = Unit(unit.rows[half_rows:], unit.tokens, unit.cost)
                self.units.append(Unit(unit.rows[:half_rows], unit.tokens, unit.cost))
                self._batches.append([unit.cost])
            else:
                self._repeated += 1

    def _rows(self, unit: int) -> int:
        return len(self.units[unit].rows)

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
        return (len(self._batches) + self._repeated) // self.world_size

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        alike: dict[int, list[Unit]] = defaultdict(list)
        for unit in self.units:
            alike[unit.cost].append(unit)
        drawn = {
            cost: iter([units[i] for i in torch.randperm(len(units), generator=generator).tolist()])
            for cost, units in sorted(alike.items())
        }
        batches: list[list[int]] = []
        wide = self.window * self.world_size
        for first in range(0, len(self._batches), wide):
            places = self._batches[first : first + wide]
            wanted = Counter(cost for batch in places for cost in batch)
            taken = {cost: [next(drawn[cost]) for _ in range(count)] for cost, count in wanted.items()}
            if self.window > 1:
                taken = {cost: sorted(units, key=lambda unit: unit.tokens) for cost, units in taken.items()}
            given = {cost: iter(units) for cost, units in taken.items()}
            batches += [[row for cost in batch for row in next(given[cost]).rows] for batch in places]
        batches += batches[-1:] * self._repeated
        start, self.start = self.start, 0
        for i in torch.randperm(len(self), generator=generator)[start:].tolist():
            yield batches[i * self.world_size + self.rank]


def _units(
    rows: list[int], lengths: Sequence[int], shared: Sequence[int], batch_size: int, batch_tokens: int | None
) -> Iterator[Unit]:
    """A group, in as many pieces as it needs to fit into batches."""
    piece: list[int] = []
    tokens = 0
    for row in rows:
        more = lengths[row] - (shared[row] if piece else 0)
        full = len(piece) == batch_size if batch_tokens is None else tokens + more > batch_tokens
        if piece and full:
            yield _unit(piece, tokens, batch_tokens)
            piece, tokens, more = [], 0, lengths[row]
        piece.append(row)
        tokens += more
    yield _unit(piece, tokens, batch_tokens)


def _unit(rows: list[int], tokens: int, batch_tokens: int | None) -> Unit:
    return Unit(rows, tokens, len(rows) if batch_tokens is None else tokens)


def _places(costs: Sequence[int], room: int) -> list[list[int]]:
    """Costs of the units of each batch: each unit, the largest first, goes where the least room is left for it."""
    batches: list[list[int]] = []
    left: dict[int, list[list[int]]] = defaultdict(list)
    rests: list[int] = []  # keys of `left` with batches, in order
    for cost in costs:
        place = bisect_left(rests, cost)
        if place == len(rests):
            batches.append([])
            batch, rest = batches[-1], room
        else:
            rest = rests[place]
            batch = left[rest].pop()
            if not left[rest]:
                del rests[place]
        batch.append(cost)
        if rest > cost:
            if not left[rest - cost]:
                insort(rests, rest - cost)
            left[rest - cost].append(batch)
    return batches


def _padded_places(costs: Sequence[int], room: int) -> list[list[int]]:
    """The same for units that are padded to the longest of their batch, which comes first."""
    batches: list[list[int]] = []
    for cost in costs:
        if not batches or (len(batches[-1]) + 1) * batches[-1][0] > room:
            batches.append([])
        batches[-1].append(cost)
    return batches
