"""Loading: what comes back, in which dtype, under which name, and what is said when nothing can."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants

from mllm_lit.backbones import Backbone, BackboneError
from mllm_lit.backbones.aspect import AspectError, with_aspect
from mllm_lit.backbones.load import checkpoint_activations, resolve_dtype
from mllm_lit.backbones.quantize import QuantizationError
from tests.conftest import REPOSITORY
from tests.processors.beds import build, picture
from tests.tiny import save_tiny, tiny_backbone


def test_a_folder_becomes_model_processor_and_layout(tiny_folder: Path) -> None:
    loaded = Backbone(str(tiny_folder), max_length=99).load()
    assert not loaded.model.training
    assert loaded.model.config._attn_implementation == "sdpa"
    assert loaded.processor.tokenizer.model_max_length == 99  # type: ignore[attr-defined]
    assert loaded.layout.connector == ("model.multi_modal_projector",)
    assert loaded.source == str(tiny_folder)
    model, _ = tiny_backbone()
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        assert torch.equal(loaded.model(input_ids=ids).logits, model(input_ids=ids).logits)


def test_pictures_become_squares_as_asked(tiny_folder: Path) -> None:
    wide = picture((255, 0, 0), (64, 16))
    pixels = {}
    for aspect in (None, "pad", "resize"):
        processor: Any = Backbone(str(tiny_folder), aspect=aspect).load().processor  # type: ignore[arg-type]
        pixels[aspect] = processor(images=[wide], text=["<image>"], return_tensors="pt")["pixel_values"][0]
    assert pixels["pad"][:, 0].abs().max() < 0.05, "the border has the mean colour"
    assert torch.equal(pixels["resize"], pixels[None]), "which is what this checkpoint does"
    with pytest.raises(AspectError, match="unknown"):
        Backbone(str(tiny_folder), aspect="stretch").load()  # type: ignore[arg-type]
    with pytest.raises(AspectError, match="makes no squares"):
        with_aspect(build("qwen2_vl").images, "pad")


def test_the_identity_is_of_the_weights_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    one = Backbone(str(tiny_folder)).load().identity
    assert Backbone(str(tiny_folder), dtype="bfloat16", attn_implementation="eager").load().identity == one
    assert Backbone(str(save_tiny(tmp_path / "moved"))).load().identity == one
    assert Backbone(str(save_tiny(tmp_path / "other", seed=1))).load().identity != one


def test_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_dtype("auto") == torch.float32
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    assert resolve_dtype("auto") == torch.bfloat16
    assert resolve_dtype("float16") == torch.float16
    with pytest.raises(BackboneError, match="int4"):
        resolve_dtype("int4")


@pytest.mark.parametrize(("roles", "expected"), [("llm", {"llm"}), ("vision", {"vision"}), ("both", {"llm", "vision"})])
def test_checkpointing_is_turned_on_by_role(tiny_folder: Path, roles: str, expected: set[str]) -> None:
    loaded = Backbone(str(tiny_folder), gradient_checkpointing=roles).load()  # type: ignore[arg-type]
    on = {
        loaded.layout.role_of(name)
        for name, module in loaded.model.named_modules()
        if name and getattr(module, "gradient_checkpointing", False) and "layers." in name
    }
    assert on == expected


def test_checkpointing_recomputes_in_training_only() -> None:
    model, _ = tiny_backbone()
    from mllm_lit.backbones import find_layout

    checkpoint_activations(model, find_layout(model), "llm")
    calls = []
    block = model.get_submodule("model.language_model.layers.0.self_attn")
    block.register_forward_hook(lambda *_: calls.append(1))
    ids = torch.arange(5, 15)[None]
    for training, expected in ((False, 1), (True, 2)):
        calls.clear()
        model.train(training)
        model(input_ids=ids).logits.sum().backward()
        assert len(calls) == expected


@pytest.fixture(scope="module")
def paligemma(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a tiny PaliGemma 2 with the processor of its family."""
    from transformers import PaliGemmaProcessor

    made, folder = build("paligemma2"), tmp_path_factory.mktemp("paligemma")
    made.model.save_pretrained(folder)
    parts = made.processor.image_processor, made.processor.tokenizer
    PaliGemmaProcessor(*parts).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2", "made_up"])
def test_attention_that_cannot_run_is_named_with_one_that_can(paligemma: Path, attention: str) -> None:
    """PaliGemma 2 has no sdpa, this installation no flash attention, and nobody the third."""
    with pytest.raises(BackboneError) as error:
        Backbone(str(paligemma), attn_implementation=attention).load()
    for word in ("'paligemma' model", f"attn_implementation: {attention}", "attn_implementation to eager"):
        assert word in str(error.value)


def test_a_config_sets_the_attention_that_its_architecture_has(paligemma: Path) -> None:
    file = REPOSITORY / "configs" / "backbones" / "paligemma2_3b.yaml"
    settings = yaml.safe_load(file.read_text())["init_args"]
    loaded = Backbone(**{**settings, "path": str(paligemma)}).load()
    assert loaded.model.config._attn_implementation == "eager"
    assert type(loaded.processor).__name__ == "PaliGemmaProcessor"


def test_attention_is_not_blamed_for_other_faults(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForImageTextToText

    with pytest.raises(BackboneError, match="'llava' model.*attn_implementation to sdpa"):
        Backbone(str(tiny_folder), attn_implementation="made_up").load()

    def broken(*_: Any, **__: Any) -> Any:
        raise ValueError("another fault")

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", broken)
    with pytest.raises(ValueError, match="another fault"):
        Backbone(str(tiny_folder)).load()


def test_a_folder_has_no_revisions(tiny_folder: Path) -> None:
    for path in (str(tiny_folder), "embedded"):
        with pytest.raises(BackboneError, match="'v2' is of a hub id"):
            Backbone(path, revision="v2").load()


def test_a_missing_folder_is_named_without_asking_the_hub(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match="there is no folder") as error:
        Backbone(str(tmp_path / "nothing")).load()
    assert str(tmp_path / "nothing") in str(error.value)
    assert "--local-dir" in str(error.value)


def test_an_unreachable_hub_id_says_how_to_give_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(BackboneError, match="as a Hugging Face hub id it could not be fetched") as error:
        Backbone("somebody/some-model").load()
    for word in ("somebody/some-model", "--local-dir", "model.backbone.path", "embedded"):
        assert word in str(error.value)


def test_a_folder_without_config_is_named_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").touch()
    with pytest.raises(BackboneError, match=r"weights\.bin"):
        Backbone(str(tmp_path)).load()


def test_a_text_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(BackboneError, match="'llama' model, which takes no image"):
        Backbone(str(tmp_path)).load()


def test_weights_without_a_processor_say_what_is_missing(tmp_path: Path) -> None:
    model, _ = tiny_backbone()
    model.save_pretrained(tmp_path)
    with pytest.raises(BackboneError, match=r"processor_config\.json"):
        Backbone(str(tmp_path)).load()


def test_quantisation_leaves_vision_connector_and_head(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    from mllm_lit.backbones import find_layout, quantize

    layout = find_layout(tiny_backbone()[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(QuantizationError, match="pip install bitsandbytes"):
        quantize.quantization_config("4bit", layout)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for bits in ("4bit", "8bit"):
        config: Any = quantize.quantization_config(bits, layout)  # type: ignore[arg-type]
        assert config.llm_int8_skip_modules == ["model.vision_tower", "model.multi_modal_projector", "lm_head"]
        assert (config.load_in_4bit, config.load_in_8bit) == (bits == "4bit", bits == "8bit")
    given: dict[str, Any] = {}

    def from_pretrained(source: str, **options: Any) -> Any:
        given.update(options)
        return tiny_backbone()[0]

    from transformers import AutoModelForImageTextToText

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", from_pretrained)
    Backbone(str(tiny_folder), dtype="float32", quantization="4bit").load()
    assert given["quantization_config"].llm_int8_skip_modules == config.llm_int8_skip_modules
    assert given["device_map"] == {"": "cuda"}


def test_code_from_the_hub_is_not_run_unless_the_user_says_so(tmp_path: Path) -> None:
    auto = {"AutoConfig": "code.Config", "AutoModelForImageTextToText": "code.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (tmp_path / "code.py").write_text("raise SystemExit('the code was run')")
    with pytest.raises(BackboneError, match="trust_remote_code"):
        Backbone(str(tmp_path)).load()
    with pytest.raises(SystemExit, match="the code was run"):
        Backbone(str(tmp_path), trust_remote_code=True).load()


class Evil:
    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('the pickle was run')",))


def test_a_pickle_that_holds_more_than_tensors_is_refused(tmp_path: Path) -> None:
    import pickle

    from mllm_lit.backbones.original import read_tensors

    model, processor = tiny_backbone()
    model.config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    torch.save({"lm_head.weight": Evil()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        Backbone(str(tmp_path)).load()
    with pytest.raises(pickle.UnpicklingError, match="[Ww]eights.only"):
        dict(read_tensors(tmp_path))


def test_describing_a_backbone_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mllm_lit.backbones import Backbone; from mllm_lit.adapters import LoRA; "
        "Backbone('a/b'); LoRA();"
        "print([name for name in ('torch', 'transformers', 'peft', 'lightning') if name in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
