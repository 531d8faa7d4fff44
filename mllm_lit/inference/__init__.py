"""Using a model: a backbone or a finished run opened, asked about pictures, and written for others to load."""

from mllm_lit.inference.ask import Conversation
from mllm_lit.inference.export import ExportError, export
from mllm_lit.inference.run import Tuned, load_tuned

__all__ = ["Conversation", "ExportError", "Tuned", "export", "load_tuned"]
