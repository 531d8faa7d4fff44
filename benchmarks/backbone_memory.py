"""How much memory the weights of every named backbone take, computed from its dimensions on the meta device.

    python benchmarks/backbone_memory.py --out benchmarks/results/backbone_memory.json

Nothing is downloaded: the dimensions below are those of the published config.json files.
"""

import argparse
import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers as hf

from mllm_lit.backbones import find_layout
from mllm_lit.backbones.composed import ComposedConfig, ComposedForConditionalGeneration
from mllm_lit.backbones.layout import ROLES

Sizes = dict[str, Any]


def text(width: int, inner: int, layers: int, heads: int, kv: int, vocabulary: int, tied: bool, **more: Any) -> Sizes:
    """Dimensions of an LLM."""
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        **more,
    }


def vision(width: int, inner: int, layers: int, heads: int, side: int, patch: int, **more: Any) -> Sizes:
    """Dimensions of a vision transformer."""
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "image_size": side,
        "patch_size": patch,
        **more,
    }


CLIP_L = vision(1024, 4096, 24, 16, 336, 14, projection_dim=768)
LLAMA_7B = text(4096, 11008, 32, 32, 32, 32064, False)
LLAMA_13B = text(5120, 13824, 40, 40, 40, 32064, False)
SHEARED_3B = text(2560, 6912, 32, 20, 20, 32000, False)
QWEN2_HALF_B = text(896, 4864, 24, 14, 2, 152000, True)
QWEN2_1B = text(1536, 8960, 28, 12, 2, 151936, True)
QWEN2_7B = text(3584, 18944, 28, 28, 4, 152064, False)
QWEN25_3B = text(2048, 11008, 36, 16, 2, 151936, True)
QWEN3_4B = text(2560, 9728, 36, 32, 8, 151936, True, head_dim=128)
GEMMA2_2B = text(2304, 9216, 26, 8, 4, 257216, True, head_dim=256)


def so400m(side: int, layers: int = 27, **more: Any) -> Sizes:
    """SigLIP So400m."""
    return vision(1152, 4304, layers, 16, side, 14, **more)


def llava(sizes: Sizes) -> Any:
    return hf.LlavaConfig(vision_config=hf.CLIPVisionConfig(**CLIP_L), text_config=hf.LlamaConfig(**sizes))


def composed(tower: Any, llm: Any, connector: str, strategy: str = "full") -> Any:
    make: Any = ComposedConfig
    return make(
        vision_config=tower,
        text_config=llm,
        connector=connector,
        vision_feature_select_strategy=strategy,
        tie_word_embeddings=llm.tie_word_embeddings,
    )


def onevision(sizes: Sizes) -> Any:
    tower = hf.SiglipVisionConfig(**so400m(384, 26), vision_use_head=False)
    llm = hf.Qwen2Config(**sizes)
    return hf.LlavaOnevisionConfig(
        vision_config=tower, text_config=llm, tie_word_embeddings=sizes["tie_word_embeddings"]
    )


def idefics3(tower: Sizes, sizes: Sizes, scale: int) -> Any:
    return hf.Idefics3Config(
        vision_config={**tower, "model_type": "idefics3_vision"},
        text_config=hf.LlamaConfig(**sizes),
        scale_factor=scale,
        tie_word_embeddings=False,
    )


def qwen2_vl(sizes: Sizes) -> Any:
    tower = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "hidden_size": sizes["hidden_size"]}
    return hf.Qwen2VLConfig(text_config=sizes, vision_config=tower, tie_word_embeddings=sizes["tie_word_embeddings"])


def qwen25_vl(sizes: Sizes) -> Any:
    tower = {"depth": 32, "hidden_size": 1280, "intermediate_size": 3420, "num_heads": 16}
    tower["out_hidden_size"] = sizes["hidden_size"]
    return hf.Qwen2_5_VLConfig(text_config=sizes, vision_config=tower, tie_word_embeddings=sizes["tie_word_embeddings"])


def qwen3_vl(sizes: Sizes) -> Any:
    tower: Sizes = {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
    tower |= {"out_hidden_size": sizes["hidden_size"], "deepstack_visual_indexes": [5, 11, 17]}
    return hf.Qwen3VLConfig(text_config=sizes, vision_config=tower, tie_word_embeddings=sizes["tie_word_embeddings"])


def internvl3() -> Any:
    tower = {**vision(1024, 4096, 24, 16, 448, 14), "image_size": [448, 448], "patch_size": [14, 14]}
    llm = hf.Qwen2Config(**{**QWEN2_HALF_B, "vocab_size": 151674, "tie_word_embeddings": False})
    return hf.InternVLConfig(vision_config=tower, text_config=llm, tie_word_embeddings=False)


def paligemma2() -> Any:
    tower = hf.SiglipVisionConfig(**so400m(224), projection_dim=2304, vision_use_head=False)
    return hf.PaliGemmaConfig(vision_config=tower, text_config=hf.Gemma2Config(**GEMMA2_2B), projection_dim=2304)


BASE_512 = vision(768, 3072, 12, 12, 512, 16)
CONFIGS: dict[str, Any] = {
    "llava15_7b": lambda: llava(LLAMA_7B),
    "llava15_13b": lambda: llava(LLAMA_13B),
    "sharegpt4v_7b": lambda: composed(
        hf.CLIPVisionConfig(**CLIP_L), hf.LlamaConfig(**{**LLAMA_7B, "vocab_size": 32001}), "mlp2x_gelu", "default"
    ),
    "clip_vicuna_7b": lambda: composed(
        hf.CLIPVisionConfig(**CLIP_L), hf.LlamaConfig(**{**LLAMA_7B, "vocab_size": 32001}), "mlp2x_gelu", "default"
    ),
    "vila15_3b": lambda: composed(hf.SiglipVisionConfig(**so400m(384)), hf.LlamaConfig(**SHEARED_3B), "downsample"),
    "nvila_lite_2b": lambda: composed(
        hf.SiglipVisionConfig(**so400m(448)), hf.Qwen2Config(**QWEN2_1B), "downsample_3x3"
    ),
    "qwen2_vl_2b": lambda: qwen2_vl(QWEN2_1B),
    "qwen2_vl_7b": lambda: qwen2_vl(QWEN2_7B),
    "qwen25_vl_3b": lambda: qwen25_vl(QWEN25_3B),
    "qwen25_vl_7b": lambda: qwen25_vl(QWEN2_7B),
    "qwen3_vl": lambda: qwen3_vl(QWEN3_4B),
    "llava_onevision_0.5b": lambda: onevision(QWEN2_HALF_B),
    "llava_onevision_7b": lambda: onevision({**QWEN2_7B, "vocab_size": 152128}),
    "smolvlm_256m": lambda: idefics3(BASE_512, text(576, 1536, 30, 9, 3, 49280, False), 4),
    "smolvlm_500m": lambda: idefics3(BASE_512, text(960, 2560, 32, 15, 5, 49280, False), 4),
    "smolvlm_2b": lambda: idefics3(so400m(384), text(2048, 8192, 24, 32, 32, 49155, False), 3),
    "internvl3_1b": internvl3,
    "paligemma2_3b": paligemma2,
}


def count(name: str) -> dict[str, int]:
    """Parameters of each role and together, and the bytes they take in bf16."""
    config = CONFIGS[name]()
    make: Any = ComposedForConditionalGeneration
    with torch.device("meta"):
        model = (
            make(config) if isinstance(config, ComposedConfig) else hf.AutoModelForImageTextToText.from_config(config)
        )
    model.tie_weights()
    layout = find_layout(model)
    counts = dict.fromkeys(ROLES, 0)
    for parameter, tensor in model.named_parameters():
        counts[layout.role_of(parameter)] += tensor.numel()
    total = sum(counts.values())
    return {**counts, "total": total, "bf16_bytes": 2 * total}


def main() -> None:
    """Count all and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = {
        "backbones": {name: count(name) for name in CONFIGS},
        "versions": {"transformers": version("transformers")},
    }
    for name, counts in report["backbones"].items():
        sys.stdout.write(f"{name:22}{counts['total'] / 1e9:7.3f} B {counts['bf16_bytes'] / 1e9:6.1f} GB\n")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
