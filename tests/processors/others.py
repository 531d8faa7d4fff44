"""Random models of two blocks of families whose processors are not in the test bed: for what needs no inputs."""

from collections.abc import Callable
from typing import Any

import transformers as hf

from tests.processors.beds import MROPE, VISION

IMAGE, VIDEO, START, END = 4, 5, 6, 7
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 512,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}


def _idefics2() -> Any:
    perceiver = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4}
    config = hf.Idefics2Config(
        vision_config=VISION,
        perceiver_config={**perceiver, "resampler_head_dim": 8, "num_key_value_heads": 2},
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=IMAGE,
    )
    return hf.Idefics2ForConditionalGeneration(config)


def _siglip(**more: Any) -> Any:
    return hf.SiglipVisionConfig(**VISION, vision_use_head=False, **more)


def _aya_vision() -> Any:
    config = hf.AyaVisionConfig(vision_config=_siglip(), text_config=hf.Cohere2Config(**TEXT), image_token_index=IMAGE)
    return hf.AyaVisionForConditionalGeneration(config)


def _cohere2_vision() -> Any:
    config = hf.Cohere2VisionConfig(
        vision_config=_siglip(),
        text_config=hf.Cohere2Config(**TEXT),
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    )
    return hf.Cohere2VisionForConditionalGeneration(config)


def _deepseek_vl() -> Any:
    config = hf.DeepseekVLConfig(
        vision_config=_siglip(),
        text_config=hf.LlamaConfig(**TEXT, tie_word_embeddings=True),
        image_token_id=IMAGE,
    )
    return hf.DeepseekVLForConditionalGeneration(config)


def _glm4v() -> Any:
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    config = hf.Glm4vConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=START,
        image_end_token_id=END,
    )
    return hf.Glm4vForConditionalGeneration(config)


def _qwen3_5() -> Any:
    linear = {f"linear_{side}_head_dim": 8 for side in ("key", "value")} | {"linear_num_key_heads": 2}
    config = hf.Qwen3_5Config(
        text_config={
            **TEXT,
            **linear,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "num_position_embeddings": 16,
        },
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=START,
        vision_end_token_id=END,
    )
    return hf.Qwen3_5ForConditionalGeneration(config)


OTHERS: dict[str, Callable[[], Any]] = {
    "idefics2": _idefics2,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    "glm4v": _glm4v,
    "qwen3_5": _qwen3_5,
}
