"""Samples, prompts and batches; the data module that serves them is found here by the name that configurations use."""

from typing import Any

SERVED = {"MLLMDataModule", "VQADataModule", "CaptioningDataModule", "Source", "Sources"}


def __getattr__(name: str) -> Any:
    # Samples, tasks and scorers must be importable without Lightning, which the data module needs.
    if name in SERVED:
        from mllm_lit import datamodule

        return getattr(datamodule, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
