"""4- and 8-bit weights through bitsandbytes, refused where they cannot work."""

import importlib.util
from typing import TYPE_CHECKING, Any, Literal

from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import UserError

if TYPE_CHECKING:
    from torch import nn
    from transformers import BitsAndBytesConfig


class QuantizationError(UserError, RuntimeError):
    """Quantised weights were asked for where they cannot work; the message says why."""


def quantization_config(bits: Literal["4bit", "8bit"], layout: Layout) -> "BitsAndBytesConfig":
    """How transformers is to load the LLM's linear layers: NF4 with bf16 arithmetic, or LLM.int8.

    Vision encoder, connector and head keep their weights: they are small, and connectors are tuned.

    Args:
        bits: How many.
        layout: Of the model that will be loaded.

    Raises:
        QuantizationError: bitsandbytes is not installed.
    """
    import torch
    from transformers import BitsAndBytesConfig

    make: Any = BitsAndBytesConfig
    if importlib.util.find_spec("bitsandbytes") is None:
        raise QuantizationError(f"{bits} weights need bitsandbytes: pip install bitsandbytes.")
    kept = [*layout.vision, *layout.connector, *([layout.head] if layout.head else [])]
    if bits == "8bit":
        return make(load_in_8bit=True, llm_int8_skip_modules=kept)
    return make(
        llm_int8_skip_modules=kept,
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def keep_gradients(model: "nn.Module") -> None:
    """Have 4-bit weights stay as they are on CPUs with AVX512-BF16.

    bitsandbytes (0.50.2) packs them anew in the first evaluation there, and no gradient passes through them after it.
    """
    module: Any
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


def refuse_if_quantized(model: "nn.Module", what: str) -> None:
    """Stop before something that needs the real weights: full tuning, importance rules, merging into them.

    Raises:
        QuantizationError: The model was loaded in 4 or 8 bits.
    """
    if getattr(model, "is_quantized", False):
        raise QuantizationError(
            f"{what} changes or measures weights, and those of a quantised model are packed integers. "
            "Drop backbone.quantization, or train an adapter such as lora."
        )
