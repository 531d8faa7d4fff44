"""Datasets: how each official release is read, asked and scored."""

from pathlib import Path

from mllm_lit.tasks.base import DatasetError, Fault, Task
from mllm_lit.tasks.bigbench import BigBench
from mllm_lit.tasks.coco import COCOCaptions
from mllm_lit.tasks.conversations import Conversations
from mllm_lit.tasks.embedded_data import unpacked
from mllm_lit.tasks.flickr30k import Flickr30k
from mllm_lit.tasks.gqa import GQA
from mllm_lit.tasks.huggingface import HuggingFace
from mllm_lit.tasks.iconqa import IconQA
from mllm_lit.tasks.lmms_eval import LmmsEval
from mllm_lit.tasks.ocrvqa import OCRVQA
from mllm_lit.tasks.pope import POPE
from mllm_lit.tasks.scienceqa import ScienceQA
from mllm_lit.tasks.text_nll import TextNLL
from mllm_lit.tasks.textvqa import TextVQA
from mllm_lit.tasks.vizwiz import VizWiz
from mllm_lit.tasks.vqa import OKVQA, VQAv2

EMBEDDED = ("scienceqa", "iconqa", "coco_captions", "vqav2", "gqa", "conversations", "pope", "bigbench", "text_nll")
"""The tasks that ship a small set in their release's format inside this package."""

__all__ = [
    "EMBEDDED",
    "GQA",
    "OCRVQA",
    "OKVQA",
    "POPE",
    "BigBench",
    "COCOCaptions",
    "Conversations",
    "DatasetError",
    "Fault",
    "Flickr30k",
    "HuggingFace",
    "IconQA",
    "LmmsEval",
    "ScienceQA",
    "Task",
    "TextNLL",
    "TextVQA",
    "VQAv2",
    "VizWiz",
    "embedded_root",
]


def embedded_root(name: str) -> Path:
    """The folder of a set that comes with this package, in the user's cache folder (unpacked when first asked for).

    Raises:
        ValueError: No set of that name is embedded.
        DatasetError: Its archive is damaged, or the cache folder cannot be written.
    """
    if name not in EMBEDDED:
        raise ValueError(
            f"no embedded data for {name!r}; embedded are: {', '.join(EMBEDDED)}. Give a data root instead."
        )
    return unpacked(name)
