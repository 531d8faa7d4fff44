"""Rows, prompts, batches, and the data modules that serve them."""

from typing import Any

_LIGHTNING = {"MLLMDataModule", "VQADataModule", "CaptioningDataModule", "Source", "Sources"}


def __getattr__(name: str) -> Any:
    # The data modules need Lightning; rows, tasks and scorers must be importable without it.
    if name in _LIGHTNING:
        from mllm_lit.data import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
