"""What a model answers and how good that is. Plain torch, usable on any model and in any loop."""

from mllm_lit.evaluation.evaluator import Evaluator
from mllm_lit.evaluation.sets import EvaluationSet, Record, Result, Scores

__all__ = ["EvaluationSet", "Evaluator", "Record", "Result", "Scores"]
