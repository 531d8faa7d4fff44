"""What is trained on a backbone."""

from mllm_lit.adapters.base import Adapter, AdapterError
from mllm_lit.adapters.bottleneck import Bottleneck
from mllm_lit.adapters.full import Full
from mllm_lit.adapters.methods import IA3, Peft, Prefix, Prompt
from mllm_lit.adapters.peft import LoRA

ADAPTERS: dict[str, type[Adapter]] = {
    "bottleneck": Bottleneck,
    "full": Full,
    "ia3": IA3,
    "lora": LoRA,
    "peft": Peft,
    "prefix": Prefix,
    "prompt": Prompt,
}

__all__ = ["ADAPTERS", "IA3", "Adapter", "AdapterError", "Bottleneck", "Full", "LoRA", "Peft", "Prefix", "Prompt"]
