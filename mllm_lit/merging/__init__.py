"""Merges: from fine-tuned weights some way back to θ0, after training. Plain torch."""

from mllm_lit.merging.base import Merge, MergeError
from mllm_lit.merging.dare import DARE
from mllm_lit.merging.grafting import Grafting
from mllm_lit.merging.intruders import ReduceIntruders
from mllm_lit.merging.tailor import ModelTailor, hessians
from mllm_lit.merging.ties import TIES
from mllm_lit.merging.wise_ft import WiSEFT, sweep

MERGES: dict[str, type[Merge]] = {
    "none": Merge,
    "wise_ft": WiSEFT,
    "dare": DARE,
    "ties": TIES,
    "grafting": Grafting,
    "model_tailor": ModelTailor,
    "reduce_intruders": ReduceIntruders,
}

__all__ = [
    "DARE",
    "MERGES",
    "TIES",
    "Grafting",
    "Merge",
    "MergeError",
    "ModelTailor",
    "ReduceIntruders",
    "WiSEFT",
    "hessians",
    "sweep",
]
