"""The run's one seed, from which everything random is drawn."""

import os


def run_seed() -> int:
    """What ``seed_everything`` was given.

    Raises:
        RuntimeError: Nothing was seeded, so the run could not be repeated.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")
    if seed is None:
        raise RuntimeError("No seed is set. Give seed_everything in the config, or call lightning.seed_everything().")
    return int(seed)


def mix(*parts: int) -> int:
    """A seed that depends on every part, for streams that must not coincide (64-bit SplitMix finaliser)."""
    state = 0
    for part in parts:
        state = (state + part + 0x9E3779B97F4A7C15) % 2**64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
        state ^= state >> 31
    return state % 2**63
