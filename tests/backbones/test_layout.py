"""Layouts of full-size architectures, on the meta device, and what is said of a model without one."""

import pytest
import torch
import transformers as hf
from torch import nn

from mllm_lit.backbones import LayoutError, find_layout
from tests.tiny import tiny_backbone

# Architectures beyond the zoo whose default config builds: their parts are found by structure. Left out are such
# that need timm, or whose default config lacks a part.
FOUND = {
    *("aria", "blip-2", "cosmos3_edge", "cosmos3_omni", "deepseek_vl_hybrid", "ernie4_5_vl_moe", "exaone4_5"),
    *("glm46v", "glm4v_moe", "glm5_next", "glm_ocr", "glmga", "got_ocr2", "granite_docling", "hyperclovax_vision_v2"),
    *("inkling2", "instructblip", "instructblipvideo", "kimi_k25", "kosmos-2", "kosmos-2.5", "lfm2_vl", "lfm3_vl"),
    *("lighton_ocr", "llama4", "llava_next_video", "minicpm_ocr", "minicpmv4_6", "minicpmv4_7", "minimax_m3_vl"),
    *("mistral_large4", "mllama", "molmo2", "muse_glimmer", "nemotron_h_omni", "ovis2", "paddleocr_vl"),
    *("pp_chart2table", "qianfan_ocr", "qwen3_5_moe", "qwen3_vl_moe", "qwen4_exp", "shieldgemma2", "step3p7"),
    *("unlimited_ocr", "video_llama_3", "video_llava"),
}
# No vision encoder ahead of a decoder-only LLM, or one for sound besides.
REFUSED = {
    *("blip", "dots3_note", "florence2", "fuyu", "git", "idefics", "janus", "mistral4", "muse_spark", "pi0"),
    *("pix2struct", "pp_formulanet", "qwen2_5_omni_thinker", "qwen3_omni_moe_thinker", "t5gemma2", "udop"),
}
CONNECTORS = {
    "aria": "model.multi_modal_projector",
    "blip-2": "qformer",
    "deepseek_vl_hybrid": "model.high_res_vision_alpha",
    "instructblip": "query_tokens",
    "llama4": "vision_model.vision_adapter",
    "ovis2": "model.visual_embeddings_table",
    "video_llama_3": "model.projector",
}


def of_two_blocks(kind: str) -> torch.nn.Module:
    """A model of the family's default size, but for its depth, on the meta device."""
    config = hf.AutoConfig.for_model(kind)
    parts = {id(part): part for part in (config.get_text_config(), getattr(config, "vision_config", None)) if part}
    for part in parts.values():
        for key in ("num_hidden_layers", "depth"):
            if isinstance(getattr(part, key, None), int):
                setattr(part, key, 2)
        if getattr(part, "layer_types", None):
            part.layer_types = part.layer_types[:2]
    with torch.device("meta"):
        model: torch.nn.Module = hf.AutoModelForImageTextToText.from_config(config)
    return model


@pytest.mark.parametrize("kind", sorted(FOUND))
def test_finds_the_parts_of(kind: str) -> None:
    model = of_two_blocks(kind)
    layout = find_layout(model)
    roles = {layout.role_of(parameter) for parameter, _ in model.named_parameters()}
    assert roles == {"vision", "connector", "llm"}
    assert len(model.get_submodule(layout.blocks)) == 2  # type: ignore[arg-type]
    if kind in CONNECTORS:
        assert CONNECTORS[kind] in layout.connector


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_refuses_what_has_other_parts(kind: str) -> None:
    with pytest.raises(LayoutError, match=r"(?s)could not be told apart.*Set the four keys yourself"):
        find_layout(of_two_blocks(kind))


class Strange(nn.Module):
    """Parts under names that nobody else uses."""

    def __init__(self) -> None:
        super().__init__()
        self.eye = nn.Linear(2, 2)
        self.bridge = nn.Linear(2, 2)
        self.speaker = nn.ModuleDict({"stack": nn.ModuleList([nn.Linear(2, 2)]), "out": nn.Linear(2, 2)})


def test_an_unknown_architecture_is_refused_with_its_modules_and_the_keys() -> None:
    with pytest.raises(LayoutError) as error:
        find_layout(Strange())
    for word in ("Strange", "eye", "bridge", "speaker", "vision:", "connector:", "llm:", "blocks:"):
        assert word in str(error.value)


def test_an_unknown_architecture_works_once_described() -> None:
    given = {"vision": "eye", "connector": ["bridge"], "llm": ["speaker"], "blocks": "speaker.stack"}
    layout = find_layout(Strange(), given)
    assert [layout.role_of(name) for name in ("eye.weight", "bridge.bias", "speaker.out.weight")] == [
        "vision",
        "connector",
        "llm",
    ]
    assert layout.block_of("speaker.stack.0.weight") == 0
    assert layout.block_of("speaker.out.weight") is None


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"vision": "eye", "llm": "speaker", "blocks": "speaker.stack"}, "bridge.weight"),
        ({"vision": "eye", "connector": ["eye", "bridge"], "llm": "speaker", "blocks": "speaker.stack"}, "two roles"),
        ({"connector": ["eye", "bridge"], "llm": "speaker", "blocks": "speaker.stack"}, "vision"),
        ({"ears": "eye"}, "Unknown layout keys"),
        ({"vision": "eye", "connector": "bridge", "llm": "speaker", "blocks": "speaker.pile"}, "speaker.pile"),
    ],
)
def test_a_wrong_description_is_refused(given: dict[str, str | list[str]], complaint: str) -> None:
    with pytest.raises(LayoutError, match=complaint):
        find_layout(Strange(), given)


def test_a_longer_prefix_wins_and_no_prefix_matches_half_a_name() -> None:
    layout = find_layout(
        Strange(), {"vision": "eye", "connector": "bridge", "llm": ["speaker"], "blocks": "speaker.stack"}
    )
    with pytest.raises(LayoutError, match="eyelid"):
        layout.role_of("eyelid.weight")


@pytest.mark.parametrize("method", ["LORA", "PREFIX_TUNING"])
def test_names_of_a_wrapped_model_have_the_roles_of_the_bare_one(method: str) -> None:
    from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model

    model, _ = tiny_backbone()
    layout = find_layout(model)
    bare = {name: (layout.role_of(name), layout.block_of(name)) for name, _ in model.named_parameters()}
    config: PeftConfig = LoraConfig(target_modules=r".*\.q_proj")
    if method == "PREFIX_TUNING":
        config = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    wrapped = get_peft_model(model, config)
    seen = {}
    for name, _ in wrapped.named_parameters():
        base = layout.base_name(name)
        if base in bare:
            seen[base] = (layout.role_of(name), layout.block_of(name))
        elif "lora" in name:
            assert layout.role_of(name) == ("vision" if "vision_tower" in name else "llm")
        else:
            assert layout.role_of(name) == "llm"
    assert seen == bare
