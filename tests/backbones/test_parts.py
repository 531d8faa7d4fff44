"""Backbones put together from folders of a vision encoder and an LLM."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_lit.adapters import Full, LoRA
from mllm_lit.backbones import Backbone, BackboneError, ComposedBackbone, LoadedBackbone
from mllm_lit.backbones.connectors import CONNECTORS
from mllm_lit.backbones.parts import chat_template
from tests.backbones.parts import save_llm, save_vision
from tests.processors.beds import picture

ASK = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders of three vision encoders and two LLMs."""
    root = tmp_path_factory.mktemp("parts")
    folders = {kind: str(save_vision(kind, root / kind)) for kind in ("clip", "siglip", "dinov2")}
    return {**folders, **{kind: str(save_llm(kind, root / kind)) for kind in ("llama", "qwen2")}}


def ask(loaded: LoadedBackbone) -> dict[str, Any]:
    """Inputs of a question about a picture that is not square."""
    processor: Any = loaded.processor
    text = processor.apply_chat_template(ASK, add_generation_prompt=True)
    return dict(processor(images=[picture((255, 0, 0), (50, 40))], text=[text], return_tensors="pt"))


def logits(loaded: LoadedBackbone) -> torch.Tensor:
    """Of :func:`ask`."""
    with torch.no_grad():
        out: torch.Tensor = loaded.model(**ask(loaded)).logits
    return out


@pytest.mark.parametrize(
    ("vision", "llm", "connector"),
    [("clip", "llama", kind) for kind in CONNECTORS]
    + [("siglip", "qwen2", "downsample"), ("dinov2", "llama", "linear")],
)
def test_parts_become_one_model_that_saves_loads_and_generates(
    parts: dict[str, str], tmp_path: Path, vision: str, llm: str, connector: Any
) -> None:
    torch.manual_seed(0)
    loaded = ComposedBackbone(parts[vision], parts[llm], connector, queries=9).load()
    expected = logits(loaded)
    assert expected.isfinite().all()
    loaded.model.save_pretrained(tmp_path)
    loaded.processor.save_pretrained(tmp_path)
    again = Backbone(str(tmp_path)).load()
    assert torch.equal(logits(again), expected)
    assert again.identity == loaded.identity
    inputs = ask(again)
    produced = again.model.generate(**inputs, max_new_tokens=2, do_sample=False)  # type: ignore[operator]
    assert produced.shape[1] > inputs["input_ids"].shape[1]


def test_the_parts_keep_their_weights(parts: dict[str, str]) -> None:
    from transformers import CLIPVisionModel, LlamaForCausalLM

    loaded = ComposedBackbone(parts["clip"], parts["llama"]).load()
    vision = CLIPVisionModel.from_pretrained(parts["clip"]).state_dict()
    assert all(
        torch.equal(loaded.model.get_submodule("model.vision_tower").state_dict()[k], v) for k, v in vision.items()
    )
    llm = LlamaForCausalLM.from_pretrained(parts["llama"]).eval()
    ids = torch.arange(5, 20)[None]
    with torch.no_grad():
        ours = loaded.model(input_ids=ids).logits
        theirs = llm(input_ids=ids).logits
    assert torch.equal(ours[..., : theirs.shape[-1]], theirs)


def test_the_connector_depends_on_the_runs_seed_and_the_rest_does_not(
    parts: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = []
    for seed in (1, 1, 2):
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
        states.append(ComposedBackbone(parts["clip"], parts["llama"]).load().model.state_dict())
    for name, tensor in states[0].items():
        assert torch.equal(tensor, states[1][name]), name
        assert torch.equal(tensor, states[2][name]) is ("projector" not in name), name


def test_alignment_then_instruction_hands_the_connector_on(parts: dict[str, str], tmp_path: Path) -> None:
    loaded = ComposedBackbone(parts["clip"], parts["llama"]).load()
    adapter = Full(blocks=0)
    model = adapter.attach(loaded)
    with torch.no_grad():
        for parameter in adapter.opened_parameters(model).values():
            parameter.add_(0.25)
    adapter.save(model, tmp_path)
    second = ComposedBackbone(
        parts["clip"], parts["llama"], connector_weights=str(tmp_path / "connector.safetensors")
    ).load()
    for name, parameter in adapter.opened_parameters(model).items():
        assert torch.equal(second.model.get_parameter(name), parameter)
    roles = {second.layout.role_of(n) for n, p in LoRA(rank=2).attach(second).named_parameters() if p.requires_grad}
    assert roles == {"connector", "llm"}


def test_weights_of_another_connector_are_refused(parts: dict[str, str], tmp_path: Path) -> None:
    adapter = Full(blocks=0)
    adapter.save(adapter.attach(ComposedBackbone(parts["clip"], parts["llama"], "linear").load()), tmp_path)
    file = str(tmp_path / "connector.safetensors")
    with pytest.raises(BackboneError, match="of another connector"):
        ComposedBackbone(parts["clip"], parts["llama"], "mlp2x_gelu", connector_weights=file).load()
    with pytest.raises(BackboneError, match="there is no file"):
        ComposedBackbone(parts["clip"], parts["llama"], connector_weights=str(tmp_path / "nothing")).load()


def test_an_llm_is_no_vision_encoder(parts: dict[str, str]) -> None:
    with pytest.raises(BackboneError, match="'llama'; a vision encoder is one of"):
        ComposedBackbone(parts["llama"], parts["llama"]).load()


def test_templates_put_pictures_ahead_of_the_text(parts: dict[str, str]) -> None:
    tokenizer: Any = ComposedBackbone(parts["clip"], parts["llama"]).load().processor
    turns = [*ASK, {"role": "assistant", "content": "red"}, {"role": "user", "content": "why?"}]
    render = tokenizer.apply_chat_template
    assert render(turns, chat_template=chat_template("vicuna"), add_generation_prompt=True) == (
        "<s>USER: <image>\nwhat? ASSISTANT: red</s>USER: why? ASSISTANT:"
    )
    assert render(turns, chat_template=chat_template("chatml")) == (
        "<|im_start|>user\n<image>\nwhat?<|im_end|>\n<|im_start|>assistant\nred<|im_end|>\n"
        "<|im_start|>user\nwhy?<|im_end|>\n"
    )
    with pytest.raises(BackboneError, match="'mine' is unknown"):
        chat_template("mine")


def test_parts_are_taken_out_of_whole_models_and_the_llm_keeps_its_template(parts: dict[str, str]) -> None:
    whole = Backbone("embedded").load()
    loaded = ComposedBackbone("embedded", "embedded", feature_layer=-1, template="own").load()
    for path in ("model.vision_tower", "model.language_model", "lm_head"):
        state = whole.model.get_submodule(path).state_dict()
        assert all(torch.equal(loaded.model.get_submodule(path).state_dict()[name], v) for name, v in state.items())
    assert {name: tensor.tolist() for name, tensor in ask(loaded).items()} == {
        name: tensor.tolist() for name, tensor in ask(whole).items()
    }
    connector = whole.model.get_submodule("model.multi_modal_projector")
    ours = loaded.model.get_submodule("model.multi_modal_projector.layers")
    with torch.no_grad():
        for name, old in (("0", "linear_1"), ("2", "linear_2")):
            ours.get_submodule(name).load_state_dict(connector.get_submodule(old).state_dict())
    assert torch.equal(logits(loaded), logits(whole)), "with its own connector it is the model it was taken from"
    with pytest.raises(BackboneError, match="no chat template that writes <image>"):
        ComposedBackbone(parts["clip"], parts["llama"], template="own").load()


def test_layers_and_features_are_chosen(parts: dict[str, str]) -> None:
    loaded = ComposedBackbone(parts["clip"], parts["llama"], "linear", feature_layer=[-2, -1]).load()
    assert loaded.model.get_parameter("model.multi_modal_projector.layers.0.weight").shape == (32, 64)
    counts = {}
    for features in ("patch", "cls_patch"):
        loaded = ComposedBackbone(parts["dinov2"], parts["llama"], "linear", features=features).load()  # type: ignore[arg-type]
        assert logits(loaded).isfinite().all()
        counts[features] = int((ask(loaded)["input_ids"] == loaded.model.config.image_token_id).sum())
    assert counts == {"patch": 16, "cls_patch": 17}
    for vision, connector in (("siglip", "linear"), ("clip", "downsample")):
        with pytest.raises(BackboneError, match="class token"):
            ComposedBackbone(parts[vision], parts["llama"], connector, features="cls_patch").load()  # type: ignore[arg-type]


def test_an_unreachable_part_says_how_to_give_a_folder(parts: dict[str, str]) -> None:
    for vision, llm in (("openai/none", parts["llama"]), (parts["clip"], "lmsys/none")):
        with pytest.raises(BackboneError, match="/none'.*could not be fetched.*--local-dir"):
            ComposedBackbone(vision, llm).load()
