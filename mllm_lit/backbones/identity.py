"""A digest that tells one backbone from another, cheap enough for 70 billion parameters."""

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SAMPLES = 64
# What a config says about a run rather than about the model.
VOLATILE = {
    "_attn_implementation",
    "_name_or_path",
    "architectures",
    "attn_implementation",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
    "use_cache",
}


def identity_of(model: "PreTrainedModel") -> str:
    """SHA-256 over config, parameter names and shapes, and a strided sample of each tensor's values.

    Values are rounded to bf16 first, so that one checkpoint has one identity whatever dtype it is loaded in.
    """
    import torch

    digest = hashlib.sha256(json.dumps(_stable(model.config.to_dict()), sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        if parameter.is_meta or not parameter.is_floating_point():
            continue
        stride = max(1, parameter.numel() // SAMPLES)
        sample = parameter.detach().flatten()[::stride][:SAMPLES]
        digest.update(sample.to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


def _stable(value: object) -> object:
    if isinstance(value, dict):
        return {key: _stable(entry) for key, entry in value.items() if key not in VOLATILE}
    return value
