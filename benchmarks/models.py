"""Models with random weights, and rows on random pictures, for what measures speed and memory."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mllm_lit.data.sample import Sample
from mllm_lit.seed import run_seed

PATCH = 16


def random_model(tokens: int, embedded: Any) -> tuple[Any, Any]:
    """A model of SmolLM2-135M's shape with so many tokens a picture, and its processor."""
    side = PATCH * round(tokens**0.5)
    vision = CLIPVisionConfig(
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=side,
        patch_size=PATCH,
    )
    text = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        pad_token_id=embedded.tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=embedded.image_token_id,
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(run_seed())
    model = LlavaForConditionalGeneration(config).eval()
    model.generation_config.pad_token_id = embedded.tokenizer.pad_token_id
    size = {"height": side, "width": side}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        embedded.tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=embedded.chat_template,
    )
    return model, processor


def asked(rows: Sequence[Sample], each: int, pictures: int, side: int, folder: Path) -> list[Sample]:
    """So many of the rows on each of so many new pictures."""
    random = np.random.default_rng(run_seed())
    refs = []
    for number in range(pictures):
        refs.append(folder / f"{side}_{number}.png")
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(refs[-1])
    chosen = islice(cycle(rows), each * pictures)
    return [replace(row, images=(refs[i // each],)) for i, row in enumerate(chosen)]


def llava_15(small: bool, embedded: Any, device: str) -> tuple[Any, Any]:
    """A model of LLaVA-1.5-7B's shape with random weights, in bf16 on a GPU, and its processor.

    Args:
        small: Few and narrow blocks and 16 tokens a picture in place of 576.
        embedded: The embedded model's processor, whose tokenizer it has.
        device: Where it is built; on a CPU in fp32.
    """
    vision: dict[str, Any] = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "image_size": 336, "patch_size": 14}
    text: dict[str, Any] = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32}
    text |= {"num_attention_heads": 32, "vocab_size": 32064, "max_position_embeddings": 4096}
    if small:
        vision |= {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        vision |= {"image_size": 56}
        text |= {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
        text |= {"vocab_size": 2048}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**vision),
        text_config=LlamaConfig(**text, pad_token_id=embedded.tokenizer.pad_token_id),
        image_token_index=embedded.image_token_id,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    torch.manual_seed(run_seed())
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16 if device == "cuda" else torch.float32)
    try:
        with torch.device(device):
            model = LlavaForConditionalGeneration(config).eval()
    finally:
        torch.set_default_dtype(before)
    model.generation_config.pad_token_id = embedded.tokenizer.pad_token_id
    size = {"height": vision["image_size"], "width": vision["image_size"]}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        embedded.tokenizer,
        patch_size=vision["patch_size"],
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=embedded.chat_template,
    )
    return model, processor
