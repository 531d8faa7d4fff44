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

__all__ = [
    "EWC",
    "L2SP",
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
