"""Objectives: what a training step minimises."""

from mllm_lit.objectives.base import BeforeTraining, Objective, ObjectiveError, kl_to_before
from mllm_lit.objectives.to_before import ASFT, FLOW, STM, TALR, ForgettingBudget, KLOnMixed, KLToBase
from mllm_lit.objectives.weighted import DFT, EAFT, NLL

__all__ = [
    "ASFT",
    "DFT",
    "EAFT",
    "FLOW",
    "NLL",
    "STM",
    "TALR",
    "BeforeTraining",
    "ForgettingBudget",
    "KLOnMixed",
    "KLToBase",
    "Objective",
    "ObjectiveError",
    "kl_to_before",
]
