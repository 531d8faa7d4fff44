"""Every family that transformers ships and users train: roles, inputs of every kind, generation, saving."""

from functools import cache
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForImageTextToText

from mllm_lit.adapters import IA3, Adapter, Bottleneck, Full, LoRA
from mllm_lit.backbones import LoadedBackbone, find_layout
from mllm_lit.backbones.identity import identity_of
from tests.backbones.zoo import ZOO, Animal, build, picture

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

each_family = pytest.mark.parametrize("name", ZOO)
cached = cache(build)


def loaded(animal: Animal) -> LoadedBackbone:
    """The animal as an adapter takes it; it has no real processor."""
    return LoadedBackbone(animal.model, None, find_layout(animal.model), identity_of(animal.model), "zoo")  # type: ignore[arg-type]


@each_family
def test_roles_cover_every_parameter_and_name_real_modules(name: str) -> None:
    model = cached(name).model
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
    animal = cached(name)
    rows = {}
    for case, (texts, pictures) in CASES.items():
        with torch.no_grad():
            rows[case] = animal.model(**animal.inputs(texts, pictures)).logits[:, -1]
        assert rows[case].isfinite().all(), case
    torch.testing.assert_close(rows["mixed"][:1], rows["one image"], atol=1e-4, rtol=1e-4)
    other = animal.model(**animal.inputs([ASK], [BLUE])).logits[:, -1]
    assert not torch.allclose(other, rows["one image"], atol=1e-7), "the picture changes nothing"


@each_family
def test_batched_generation_equals_one_by_one(name: str) -> None:
    animal = cached(name)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    batched = animal.model.generate(**animal.inputs(*CASES["mixed"]), **options)[:, -3:]
    alone = [
        animal.model.generate(**animal.inputs(*CASES[case]), **options)[0, -3:] for case in ("one image", "text only")
    ]
    assert batched.tolist() == [row.tolist() for row in alone]


@each_family
def test_saves_and_loads_and_keeps_its_identity(name: str, tmp_path: Path) -> None:
    animal = cached(name)
    animal.model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    inputs = animal.inputs(*CASES["one image"])
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, animal.model(**inputs).logits)
    assert identity_of(again) == identity_of(animal.model)
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
