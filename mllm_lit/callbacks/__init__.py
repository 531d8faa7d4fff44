"""What a run does beside its steps."""

from mllm_lit.callbacks.checkpoint import TrainableCheckpoint
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.callbacks.predictions import PredictionsCallback
from mllm_lit.callbacks.summary import SummaryCallback
from mllm_lit.importance.callback import ImportanceCallback

__all__ = [
    "ForgettingCallback",
    "ImportanceCallback",
    "PredictionsCallback",
    "SummaryCallback",
    "TrainableCheckpoint",
]
