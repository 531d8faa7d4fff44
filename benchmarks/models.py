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
