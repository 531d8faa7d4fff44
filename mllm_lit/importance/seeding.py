"""Random numbers that depend on a seed and a name, not on what was drawn before."""

import zlib

import torch


def generator(seed: int | None, name: str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own for ``name``.

    Args:
        seed: ``None`` takes the run's seed, that is the one of ``torch.manual_seed`` (equal on all ranks under
            Lightning's ``seed_everything``, as rules on replicated weights need).
    """
    base = torch.initial_seed() if seed is None else seed
    return torch.Generator(device).manual_seed((base * 1_000_003 + zlib.crc32(name.encode())) % 2**63)
