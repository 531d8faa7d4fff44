"""Where adapters go: by full path, on every layout, and never by accident."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mllm_lit.adapters import IA3, AdapterError, Bottleneck, Full, LoRA, Peft, Prefix
from mllm_lit.adapters.targets import block_linears, chosen_blocks, pattern
from mllm_lit.backbones import find_layout
from tests.adapters.test_contract import backbone
from tests.processors.beds import BEDS, build
from tests.processors.others import OTHERS

ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
OWN_ATTENTION = {"qwen3_5": ATTENTION | {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}}
"""One block of linear attention, one of the usual."""
OWN_MLP = {"glm4v": {"gate_up_proj", "down_proj"}}


@pytest.mark.parametrize("family", [*BEDS, *OTHERS])
def test_where_means_the_same_on_every_layout(family: str) -> None:
    model = OTHERS[family]() if family in OTHERS else build(family).model
    layout = find_layout(model)
    attention, mlp = OWN_ATTENTION.get(family, ATTENTION), OWN_MLP.get(family, MLP)
    for where, expected in (("attention", attention), ("mlp", mlp), ("both", attention | mlp)):
        found = block_linears(model, layout, where)  # type: ignore[arg-type]
        assert {name.rpartition(".")[2] for name in found} == expected
        mixed = len(attention) if family in OWN_ATTENTION and where != "mlp" else 0
        assert len(found) == 2 * len(expected) - mixed
        assert all(name.startswith(f"{layout.blocks}.") for name in found)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.from_regex(r"[a-z]{1,3}(\.[0-9]{1,2})?(\.[a-z_]{1,3}){1,2}", fullmatch=True), min_size=1, unique=True)
)
def test_a_pattern_matches_its_names_and_no_others(names: list[str]) -> None:
    kept, left = names[::2], names[1::2]
    expression = pattern(kept)
    assert all(re.fullmatch(expression, name) for name in kept)
    assert not any(re.fullmatch(expression, name) for name in left)
    assert not any(re.fullmatch(expression, f"vision.{name}") for name in kept)


def test_blocks_are_counted_from_the_end_or_named() -> None:
    model = build("llava").model
    layout = find_layout(model)
    assert chosen_blocks(layout, model, "all") == [0, 1]
    assert chosen_blocks(layout, model, 1) == [1]
    assert chosen_blocks(layout, model, 0) == []
    assert chosen_blocks(layout, model, [0]) == [0]
    with pytest.raises(AdapterError, match="last 3 of 2"):
        chosen_blocks(layout, model, 3)
    with pytest.raises(AdapterError, match=r"\[2\] are not there"):
        chosen_blocks(layout, model, [1, 2])


def targeted(adapter: Any, family: str = "llava") -> set[str]:
    """The bare names of the modules that hold something new."""
    loaded = backbone(build(family))
    module = adapter.attach(loaded)
    new = [name for name, p in module.named_parameters() if p.requires_grad]
    marks = r"\.(lora_\w+|ia3_l|bottleneck_\w+)\..*"
    return {re.sub(marks, "", loaded.layout.base_name(name)) for name in new if re.search(marks, name)}


@pytest.mark.parametrize("adapter", [LoRA, IA3, Bottleneck])
def test_only_the_chosen_block_is_touched(adapter: Any) -> None:
    names = targeted(adapter(blocks=[0], connector="frozen"))
    assert names
    assert all(name.startswith("model.language_model.layers.0.") for name in names)


def test_ia3_scales_keys_values_and_the_last_linear() -> None:
    assert {name.rpartition(".")[2] for name in targeted(IA3())} == {"k_proj", "v_proj", "down_proj"}
    assert {name.rpartition(".")[2] for name in targeted(IA3(where="attention"))} == {"k_proj", "v_proj"}


def test_vision_and_connector_are_reached_when_asked_for() -> None:
    names = targeted(LoRA(rank=2, connector="lora", vision="lora"))
    assert {"model.multi_modal_projector.linear_1", "model.multi_modal_projector.linear_2"} <= names
    assert any(name.startswith("model.vision_tower.") for name in names)
    assert not any("lm_head" in name for name in names)


@pytest.mark.parametrize(
    "adapter",
    [
        LoRA(rank=2, where="gate_up"),
        LoRA(rank=2, where="gate_up", init="mica"),
        LoRA(rank=2, where="gate_up", best_conditioned=1.0),
        Bottleneck(size=2, where="gate_up"),
        Bottleneck(size=2, where="gate_up", placement="parallel"),
        Peft("OSF", {"effective_rank": 4}, where="gate_up"),
        Peft("SHIRA", {"r": 2}, where="gate_up"),
        Peft("OFT", {"oft_block_size": 4}, where="gate_up"),
        Peft("VERA", {"r": 4}, where="gate_up"),
    ],
)
def test_gate_and_up_are_taken_alone(adapter: LoRA | Bottleneck | Peft) -> None:
    loaded = backbone(build("llava"))
    module = adapter.attach(loaded)
    new = {name for name, p in module.named_parameters() if p.requires_grad} - set(adapter.opened_parameters(module))
    new = {name for name in new if loaded.layout.role_of(name) == "llm"}
    assert new
    assert all(re.search(r"\.layers\.\d\.mlp\.(gate|up)_proj\.", name) for name in new)


@pytest.mark.parametrize(
    ("make", "complaint"),
    [
        (lambda: IA3(where="gate_up"), "is gate_up, .* Set it to attention, mlp or both"),
        (lambda: Peft("P_TUNING", {"num_virtual_tokens": 2}, where="gate_up"), "is gate_up .* no linear layers"),
        (lambda: Peft("P_TUNING", {"num_virtual_tokens": 2}, blocks=1), "adapter.blocks is 1"),
        (lambda: IA3(connector="lora"), "needs the lora adapter"),
        (lambda: Prefix(connector="lora"), "needs the lora adapter"),
        (lambda: Full(connector="lora"), "needs the lora adapter"),
        (lambda: LoRA(init="eva"), "see data"),
        (lambda: Peft("nonsense"), "no method 'nonsense'"),
        (lambda: Peft("vera", {"rank": 3}), "no options"),
        (lambda: Full(blocks=0, connector="frozen"), "nothing to train"),
        (lambda: Full(blocks=1, only="biases", connector="frozen"), "only: biases"),
    ],
)
def test_what_cannot_work_is_refused(make: Any, complaint: str) -> None:
    with pytest.raises(AdapterError, match=complaint):
        make().attach(backbone(build("llava")))


def test_quantised_weights_are_not_fully_tuned() -> None:
    from mllm_lit.backbones.quantize import QuantizationError

    loaded = backbone(build("llava"))
    loaded.model.is_quantized = True  # type: ignore[attr-defined]
    with pytest.raises(QuantizationError, match="packed integers"):
        Full().attach(loaded)
