"""Scorers: plain functions over texts, and the metrics that gather them over a split."""

from mllm_lit.metrics.base import AnswerMetric, MeanScore
from mllm_lit.metrics.caption import CaptionScores, caption_scores, unavailable
from mllm_lit.metrics.choice import ChoiceAccuracy, ChosenAnswer, ChosenText, parse_choice, parse_choice_relaxed
from mllm_lit.metrics.exact import ExactMatch, exact_match, gqa_match, ocrvqa_match
from mllm_lit.metrics.hallucination import (
    POPEScores,
    chair_scores,
    mentioned,
    parse_yes_no,
    pope_scores,
)
from mllm_lit.metrics.likelihood import TextLikelihood
from mllm_lit.metrics.lmms_eval import LmmsEvalScores
from mllm_lit.metrics.m4c import M4CAccuracy, m4c_accuracy, normalize_m4c
from mllm_lit.metrics.relaxed import contains
from mllm_lit.metrics.sequences import bwt, maa, mfn, mft, sequence_scores
from mllm_lit.metrics.tradeoff import forgetting, normalised, tradeoff
from mllm_lit.metrics.vqa import VQAAccuracy, normalize_vqa, vqa_accuracy

__all__ = [
    "AnswerMetric",
    "CaptionScores",
    "ChoiceAccuracy",
    "ChosenAnswer",
    "ChosenText",
    "ExactMatch",
    "LmmsEvalScores",
    "M4CAccuracy",
    "MeanScore",
    "POPEScores",
    "TextLikelihood",
    "VQAAccuracy",
    "bwt",
    "caption_scores",
    "chair_scores",
    "contains",
    "exact_match",
    "forgetting",
    "gqa_match",
    "m4c_accuracy",
    "maa",
    "mentioned",
    "mfn",
    "mft",
    "normalize_m4c",
    "normalize_vqa",
    "ocrvqa_match",
    "parse_choice",
    "parse_choice_relaxed",
    "parse_yes_no",
    "pope_scores",
    "normalised",
    "sequence_scores",
    "tradeoff",
    "unavailable",
    "vqa_accuracy",
]
