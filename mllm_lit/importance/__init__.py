"""Importance rules: how updates may land on the weights. Plain torch, usable from any training loop."""

from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.importance.child_tuning import ChildTuningD, ChildTuningF
from mllm_lit.importance.dowser import ModelDowser
from mllm_lit.importance.ewc import EWC
from mllm_lit.importance.gradient_topk import GradientTopK
from mllm_lit.importance.half import HalfFineTuning
from mllm_lit.importance.l2sp import L2SP
from mllm_lit.importance.magnitude import MagnitudeMask
from mllm_lit.importance.mofo import MoFO
from mllm_lit.importance.random_mask import RandomMask
from mllm_lit.importance.reference import Reference
from mllm_lit.importance.sculpt import LoRASculpt
from mllm_lit.importance.spider import Spider

RULES: dict[str, type[Rule]] = {
    "none": Rule,
    "spider": Spider,
    "magnitude_mask": MagnitudeMask,
    "random_mask": RandomMask,
    "half": HalfFineTuning,
    "gradient_topk": GradientTopK,
    "child_tuning_f": ChildTuningF,
    "child_tuning_d": ChildTuningD,
    "mofo": MoFO,
    "l2sp": L2SP,
    "ewc": EWC,
    "dowser": ModelDowser,
    "lora_sculpt": LoRASculpt,
}

__all__ = [
    "EWC",
    "L2SP",
    "RULES",
    "ChildTuningD",
    "ChildTuningF",
    "GradientTopK",
    "HalfFineTuning",
    "LoRASculpt",
    "MagnitudeMask",
    "MoFO",
    "ModelDowser",
    "RandomMask",
    "Reference",
    "Rule",
    "RuleError",
    "Spider",
]
