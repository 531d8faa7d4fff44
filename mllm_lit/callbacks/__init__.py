"""What a run does beside its steps."""

from mllm_lit.callbacks.checkpoint import TrainableCheckpoint
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.callbacks.lmms_eval import LmmsEval
from mllm_lit.callbacks.summary import SummaryCallback

__all__ = ["ForgettingCallback", "LmmsEval", "SummaryCallback", "TrainableCheckpoint"]
