"""Tiny vision encoders and LLMs as the folders that their publishers would ship."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from tests.tiny import tiny_tokenizer

SIZE = {"height": 32, "width": 32}
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
VISION: dict[str, Any] = {**SHAPE, "image_size": 32, "patch_size": 8}


def save_vision(kind: str, folder: Path) -> Path:
    """A vision encoder with 4 x 4 patches and its image processor."""
    torch.manual_seed(1)
    model: Any
    images: Any
    if kind == "clip":
        model = hf.CLIPVisionModel(hf.CLIPVisionConfig(**VISION))
        images = CLIPImageProcessorPil(size=SIZE, crop_size=SIZE)
    elif kind == "siglip":
        model = hf.SiglipVisionModel(hf.SiglipVisionConfig(**VISION))
        images = SiglipImageProcessorPil(size=SIZE)
    else:
        model = hf.Dinov2Model(hf.Dinov2Config(**VISION, mlp_ratio=2))
        images = BitImageProcessorPil(size=SIZE, crop_size=SIZE)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    return folder


def save_llm(kind: str, folder: Path) -> Path:
    """A causal LLM with its tokenizer, which knows no image token yet."""
    torch.manual_seed(2)
    shape = {**SHAPE, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
    tokenizer = tiny_tokenizer()
    vocabulary = len(tokenizer)
    model: Any
    if kind == "llama":
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shape, vocab_size=vocabulary))
    else:
        model = hf.Qwen2ForCausalLM(hf.Qwen2Config(**shape, vocab_size=vocabulary, tie_word_embeddings=True))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
