"""Every family that transformers ships and users train: roles, inputs of every kind, generation, saving."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mllm_lit.adapters import IA3, Adapter, Bottleneck, Full, LoRA
from mllm_lit.backbones import find_layout
from mllm_lit.backbones.identity import identity_of
from tests.processors.beds import BEDS, build, loaded, picture
from tests.processors.others import OTHERS

RED, BLUE = picture((255, 0, 0)), picture((0, 0, 255))
ASK = "USER: <image> what colour? ASSISTANT:"
CASES = {
    "one image": ([ASK], [RED]),
    "several images": (["USER: <image> <image> what colour? ASSISTANT:"], [RED, BLUE]),
    "text only": (["USER: hello ASSISTANT:"], []),
    "mixed": ([ASK, "USER: hello ASSISTANT:"], [RED]),
}
ADAPTERS: dict[str, tuple[Adapter, set[str]]] = {
    "lora": (LoRA(rank=2, connector="frozen"), {"llm"}),
    "ia3": (IA3(connector="frozen"), {"llm"}),
    "bottleneck": (Bottleneck(size=4, connector="frozen"), {"llm"}),
    "last block": (Full(blocks=1, connector="frozen"), {"llm"}),
    "connector": (Full(blocks=0, connector="tuned"), {"connector"}),
    "vision": (Full(blocks=0, connector="frozen", vision_from=0), {"vision"}),
}

each_family = pytest.mark.parametrize("name", BEDS)
cached = cache(build)


@pytest.mark.parametrize("name", [*BEDS, *OTHERS])
def test_roles_cover_every_parameter_and_name_real_modules(name: str) -> None:
    model = OTHERS[name]() if name in OTHERS else cached(name).model
    layout = find_layout(model)
    roles = {parameter: layout.role_of(parameter) for parameter, _ in model.named_parameters()}
    assert set(roles.values()) == {"vision", "connector", "llm"}
    assert len(model.get_submodule(layout.blocks)) == 2
    assert model.get_submodule(str(layout.head)) is model.get_output_embeddings()
    blocks = {layout.block_of(parameter) for parameter, role in roles.items() if role == "llm"}
    assert blocks == {None, 0, 1}
    assert {layout.block_of(parameter) for parameter, role in roles.items() if role != "llm"} == {None}
    # The LLM's embeddings go into its own module, the vision encoder takes the picture.
    assert layout.role_of(_name_of(model, model.get_input_embeddings())) == "llm"
    assert layout.norm is not None
    model.get_submodule(layout.norm)


def _name_of(model: torch.nn.Module, wanted: torch.nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


@each_family
def test_takes_images_several_images_text_and_both(name: str) -> None:
    made = cached(name)
    rows = {}
    for case, (texts, pictures) in CASES.items():
        if name == "paligemma2" and case in ("text only", "mixed"):
            continue  # Refused, see test_data_path.py.
        with torch.no_grad():
            rows[case] = made.model(**made.inputs(texts, pictures)).logits[:, -1]
        assert rows[case].isfinite().all(), case
    if "mixed" in rows:
        torch.testing.assert_close(rows["mixed"][:1], rows["one image"], atol=1e-4, rtol=1e-4)
    other = made.model(**made.inputs([ASK], [BLUE])).logits[:, -1]
    assert not torch.allclose(other, rows["one image"], atol=1e-7), "the picture changes nothing"


@pytest.mark.parametrize("name", [name for name in BEDS if name != "paligemma2"])
def test_batched_generation_equals_one_by_one(name: str) -> None:
    made = cached(name)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    batched = made.model.generate(**made.inputs(*CASES["mixed"]), **options)[:, -3:]
    alone = [made.model.generate(**made.inputs(*CASES[case]), **options)[0, -3:] for case in ("one image", "text only")]
    assert batched.tolist() == [row.tolist() for row in alone]


@each_family
def test_saves_and_loads_and_keeps_its_identity(name: str, tmp_path: Path) -> None:
    made = cached(name)
    made.model.save_pretrained(tmp_path)
    attention = made.model.config._attn_implementation
    again = AutoModelForImageTextToText.from_pretrained(tmp_path, attn_implementation=attention).eval()
    inputs = made.inputs(*CASES["one image"])
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, made.model(**inputs).logits)
    assert identity_of(again) == identity_of(made.model)
    assert identity_of(again) != identity_of(build(name, seed=1).model)


@each_family
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_an_adapter_touches_only_its_role(name: str, adapter: str) -> None:
    backbone = loaded(build(name))
    how, expected = ADAPTERS[adapter]
    module = how.attach(backbone)
    roles = {backbone.layout.role_of(n) for n, p in module.named_parameters() if p.requires_grad}
    assert roles == expected
    blocks = {backbone.layout.block_of(n) for n, p in module.named_parameters() if p.requires_grad}
    assert blocks == ({1} if adapter == "last block" else {0, 1} if expected == {"llm"} else {None})
