"""Layouts of full-size architectures, on the meta device, and what is said of a model without one."""

import pytest
import torch
import transformers as hf
from torch import nn

from mllm_lit.backbones import LayoutError, find_layout
from tests.tiny import tiny_backbone

# Families beyond those of the zoo whose default config builds: name -> connector.
MORE = {
    "AriaConfig": "model.multi_modal_projector",
    "Blip2Config": "qformer",
    "Cohere2VisionConfig": "model.multi_modal_projector",
    "Glm4vConfig": "model.visual.merger",
    "GotOcr2Config": "model.multi_modal_projector",
    "Idefics2Config": "model.connector",
    "InstructBlipConfig": "query_tokens",
    "Lfm2VlConfig": "model.multi_modal_projector",
    "MllamaConfig": "model.multi_modal_projector",
    "Ovis2Config": "model.visual_embeddings_table",
    "VideoLlama3Config": "model.projector",
}


@pytest.mark.parametrize("name", MORE)
def test_finds_the_parts_of(name: str) -> None:
    config = getattr(hf, name)()
    with torch.device("meta"):
        model = hf.AutoModelForImageTextToText.from_config(config)
    layout = find_layout(model)
    assert MORE[name] in layout.connector
    roles = {layout.role_of(parameter) for parameter, _ in model.named_parameters()}
    assert roles == {"vision", "connector", "llm"}
    assert len(model.get_submodule(layout.blocks)) == config.get_text_config().num_hidden_layers


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
