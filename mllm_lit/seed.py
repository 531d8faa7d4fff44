"""The run's one seed, from which everything random is drawn."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum

SEED = "PL_GLOBAL_SEED"
"""The environment variable in which Lightning keeps what it was seeded with."""


class Stream(IntEnum):
    """What random numbers are drawn for. Each is used in one place; numbers are never used again."""

    ADAPTER = 1
    """Initial values of what an adapter adds."""
    DROPOUT = 2
    """Of a training batch."""
    RULE = 3
    """The seed of importance rules that are given none."""
    PROBED_ROWS = 4
    """The order of the rows that a rule looks at."""
    PROBED_DROPOUT = 5
    """Of a batch that a rule looks at."""
    CONNECTOR = 6
    """Initial values of a new connector between parts."""
    ADAPTER_INPUTS = 7
    """Texts or rows that an adapter looks at before training."""


def run_seed() -> int:
    """What ``seed_everything`` was given.

    Raises:
        RuntimeError: Nothing was seeded, so the run could not be repeated.
    """
    seed = os.environ.get(SEED)
    if seed is None:
        raise RuntimeError("No seed is set. Give seed_everything in the config, or call lightning.seed_everything().")
    return int(seed)


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Within it, the run's seed is another; ``None`` leaves it."""
    before = os.environ.get(SEED)
    if seed is not None:
        os.environ[SEED] = str(seed)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(SEED, None)
        else:
            os.environ[SEED] = before


def stream_seed(stream: Stream, *parts: int) -> int:
    """The run's seed of a stream, or of one place in it."""
    return mix(run_seed(), stream, *parts)


def mix(*parts: int) -> int:
    """A seed that depends on every part, for streams that must not coincide (64-bit SplitMix finaliser)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state % 2**63
