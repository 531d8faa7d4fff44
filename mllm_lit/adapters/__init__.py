"""What is trained on a backbone."""

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.bottleneck import Bottleneck
from mllm_lit.adapters.full import Full
from mllm_lit.adapters.methods import IA3, Peft, Prefix, Prompt
from mllm_lit.adapters.peft import LoRA
from mllm_lit.errors import AdapterError

__all__ = ["IA3", "Adapter", "AdapterError", "Bottleneck", "Full", "LoRA", "Peft", "Prefix", "Prompt"]
