"""The names of tensors in adapters and exported folders, against what vLLM and llama.cpp know."""

import json
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.adapters import LoRA
from mllm_lit.inference.export import export
from mllm_lit.inference.run import Tuned
from mllm_lit.inference.serving import SERVED, adapter_faults, export_faults, kinds, names_in, renamed
from tests.backbones.parts import save_llm, save_vision
from tests.processors.beds import BEDS, build, loaded

# The module in vLLM 0.33.0 of the first block's q_proj, by its get_mm_mapping and the LLM's own modules.
Q_PROJ = {
    "llava": "language_model.model.layers.0.self_attn.q_proj",
    "llava_next": "language_model.model.layers.0.self_attn.q_proj",
    "qwen2_vl": "language_model.model.layers.0.self_attn.q_proj",
    "qwen2_5_vl": "language_model.model.layers.0.self_attn.q_proj",
    "qwen3_vl": "language_model.model.layers.0.self_attn.q_proj",
    "internvl": "language_model.model.layers.0.self_attn.q_proj",
    "paligemma": "language_model.model.layers.0.self_attn.q_proj",
    "gemma3": "language_model.model.layers.0.self_attn.q_proj",
    "mistral3": "language_model.model.layers.0.self_attn.q_proj",
    "idefics3": "model.text_model.layers.0.self_attn.q_proj",
    "smolvlm": "model.text_model.layers.0.self_attn.q_proj",
}
# Families whose vision encoder's LoRA vLLM passes over, whatever it is told: other names, or no support.
BLIND = ("llava", "llava_vicuna", "llava_next", "paligemma2", "gemma3", "internvl3", "internvl3_untiled", "mistral3")


def saved(name: str, folder: Path, **settings: Any) -> tuple[Path, Any]:
    """A LoRA of a bed as a run saves it, and the bed's config."""
    b = build(name)
    adapter = LoRA(rank=2, alpha=4, **settings)
    adapter.save(adapter.attach(loaded(b)), folder)
    return folder, b.model.config


@pytest.mark.parametrize("name", BEDS)
def test_the_llms_adapter_finds_its_modules(name: str, tmp_path: Path) -> None:
    folder, config = saved(name, tmp_path, connector="frozen")
    kind, _ = kinds(config)
    if kind == "vipllava":
        assert "vipllava is not known" in adapter_faults(folder, config)["vLLM"][0]
        return
    faults = adapter_faults(folder, config)
    if kind == "llava_onevision":
        assert faults["vLLM"] == ["LoRA of this architecture is refused."]
        return
    assert faults["vLLM"] == []
    keys = {name.removeprefix("base_model.model.") for name in names_in(folder)}
    assert f"{Q_PROJ[kind]}.lora_A.weight" in {renamed(key, SERVED[kind]) for key in keys}


@pytest.mark.parametrize("name", [name for name in BEDS if name not in ("vipllava", "llava_onevision")])
def test_vision_adapters_that_do_nothing_are_named(name: str, tmp_path: Path) -> None:
    folder, config = saved(name, tmp_path, connector="frozen", vision="lora")
    faults = adapter_faults(folder, config)
    assert any("passed over in silence" in told for told in faults["vLLM"]) is (name in BLIND)
    assert faults["llama.cpp"], "it takes no adapter of a vision encoder"


@pytest.mark.parametrize(
    ("settings", "server", "told"),
    [
        ({"connector": "tuned"}, "vLLM", "connector.safetensors is passed over in silence"),
        ({"connector": "tuned"}, "llama.cpp", "connector.safetensors is passed over in silence"),
        ({"use_dora": True}, "vLLM", "DoRA is refused"),
        ({"use_dora": True}, "llama.cpp", "no tensor of plain LoRA"),
        ({"use_rslora": True}, "llama.cpp", "its scale is wrong"),
    ],
)
def test_what_a_server_leaves_out_is_said(settings: dict[str, Any], server: str, told: str, tmp_path: Path) -> None:
    folder, config = saved("llava", tmp_path, **{"connector": "frozen", **settings})
    assert told in " ".join(adapter_faults(folder, config)[server])


def test_a_start_that_changes_the_backbone_is_read(tmp_path: Path) -> None:
    folder, config = saved("llava", tmp_path, connector="frozen", init="pissa")
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4, "twice the rank, of the backbone itself"
    assert adapter_faults(folder, config) == {"vLLM": [], "llama.cpp": []}


def test_llama_cpp_reads_plain_lora_of_a_llava(tmp_path: Path) -> None:
    """By gguf's own table, after what ``convert_lora_to_gguf.py`` does to the names."""
    folder, config = saved("llava", tmp_path, connector="frozen")
    assert adapter_faults(folder, config)["llama.cpp"] == []
    gguf = pytest.importorskip("gguf", reason="the package 'gguf' is not installed")
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for name in names_in(folder):
        plain = name.removeprefix("base_model.model.").replace("model.language_model.", "model.", 1)
        assert table.get_name(plain.replace(".lora_A", "").replace(".lora_B", ""), try_suffixes=(".weight",)), name


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_composed_model_is_exported_under_the_hubs_names(kind: str, tmp_path: Path) -> None:
    from mllm_lit.backbones import ComposedBackbone

    made = ComposedBackbone(str(save_vision(kind, tmp_path / "v")), str(save_llm("llama", tmp_path / "l"))).load()
    out = tmp_path / "out"
    export(Tuned(made, made.model), out)
    assert export_faults(out)["vLLM"] == []
    vision = {name for name in names_in(out) if "layers.0.self_attn.q_proj.weight" in name and "vision" in name}
    # As in llava-hf/llava-1.5-7b-hf, in vLLM's CLIPVisionModel and SiglipVisionModel, and in gguf's table.
    assert vision == {"vision_tower.vision_model.encoder.layers.0.self_attn.q_proj.weight"}


def test_a_folder_with_names_that_vllm_lacks_is_told(tmp_path: Path) -> None:
    b = build("llava")  # made here, not read from the hub: saved with the names of transformers 5
    b.model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llava"
    assert "there is no such module" in export_faults(tmp_path)["vLLM"][0]
