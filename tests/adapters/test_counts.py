"""Trained shares of LLaVA-1.5-7B and 13B, as the PEFT study prints them (arXiv 2406.05130, table 1)."""

import pytest
import torch
from transformers import LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from mllm_lit.adapters import IA3, Adapter, Bottleneck, LoRA, Prefix
from mllm_lit.backbones import LoadedBackbone, find_layout

SHAPES = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40},
}
# Percent with the connector frozen and tuned.
PRINTED = [
    ("7b", Bottleneck, 2.771, 3.060),
    ("7b", LoRA, 4.332, 4.616),
    ("7b", IA3, 0.009, 0.306),
    ("7b", Prefix, 0.074, 0.371),
    ("13b", Bottleneck, 2.301, 2.532),
    ("13b", LoRA, 3.615, 3.842),
    ("13b", IA3, 0.007, 0.243),
    ("13b", Prefix, 0.061, 0.297),
]
# Half a unit of the last digit, and a whole one for 2.301: the parameters counted here give 2.30196.
ROUNDING = 0.001


@pytest.mark.parametrize(("size", "method", "frozen", "tuned"), PRINTED)
def test_defaults_train_the_share_that_the_study_prints(
    size: str, method: type[Adapter], frozen: float, tuned: float
) -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(
            LlavaConfig(text_config=LlamaConfig(vocab_size=32000, **SHAPES[size]))  # type: ignore[arg-type]
        )
        layout = find_layout(model)
        module = method().attach(LoadedBackbone(model, None, layout, "", ""))  # type: ignore[arg-type]
    total = sum(p.numel() for p in module.parameters())
    trained = {name: p.numel() for name, p in module.named_parameters() if p.requires_grad}
    connector = sum(count for name, count in trained.items() if layout.role_of(name) == "connector")
    both = sum(trained.values())
    assert 100 * both / total == pytest.approx(tuned, abs=ROUNDING)
    assert 100 * (both - connector) / total == pytest.approx(frozen, abs=ROUNDING)


def test_projected_prefix_is_as_large_as_the_released_script_makes_it() -> None:
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(LlavaConfig(text_config=LlamaConfig(vocab_size=32000, **SHAPES["7b"])))  # type: ignore[arg-type]
        backbone = LoadedBackbone(model, None, find_layout(model), "", "")  # type: ignore[arg-type]
        module = Prefix(projection=True, connector="frozen").attach(backbone)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    embedding, hidden, out = 20 * 4096, 4096 * 4096 + 4096, 4096 * 2 * 32 * 4096 + 2 * 32 * 4096
    assert trained == embedding + hidden + out
    assert trained == pytest.approx(1.09e9, rel=0.005)
