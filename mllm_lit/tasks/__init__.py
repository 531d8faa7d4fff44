"""Datasets: how each official release is read, asked and scored."""

from pathlib import Path

from mllm_lit.tasks.base import DatasetError, Fault, Task
from mllm_lit.tasks.coco import COCOCaptions
from mllm_lit.tasks.gqa import GQA
from mllm_lit.tasks.iconqa import IconQA
from mllm_lit.tasks.scienceqa import ScienceQA
from mllm_lit.tasks.vqa import OKVQA, VQAv2

TASKS: dict[str, type[Task]] = {
    "scienceqa": ScienceQA,
    "iconqa": IconQA,
    "vqav2": VQAv2,
    "okvqa": OKVQA,
    "gqa": GQA,
    "coco_captions": COCOCaptions,
}

EMBEDDED = ("scienceqa", "iconqa", "coco_captions", "vqav2", "gqa")
"""The tasks that ship a small set in their release's format inside this package."""

__all__ = [
    "EMBEDDED",
    "GQA",
    "OKVQA",
    "TASKS",
    "COCOCaptions",
    "DatasetError",
    "Fault",
    "IconQA",
    "ScienceQA",
    "Task",
    "VQAv2",
    "embedded_root",
]


def embedded_root(name: str) -> Path:
    """The folder of a set that comes with this package.

    Raises:
        ValueError: No set of that name is embedded.
    """
    if name not in EMBEDDED:
        raise ValueError(
            f"no embedded data for {name!r}; embedded are: {', '.join(EMBEDDED)}. Give a data root instead."
        )
    return Path(__file__).parent / "embedded" / name
