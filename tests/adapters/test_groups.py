"""The optimizer's groups: a learning rate and a decay for each role, and nothing left out."""

import torch

from mllm_lit.adapters import Full, LoRA
from tests.adapters.test_contract import backbone
from tests.processors.beds import build


def groups(adapter: LoRA | Full) -> dict[str, dict[str, object]]:
    """By name, as an optimizer holds them."""
    loaded = backbone(build("llava"))
    module = adapter.attach(loaded)
    optimizer = torch.optim.AdamW(adapter.parameter_groups(module, loaded.layout))
    seen = [id(p) for group in optimizer.param_groups for p in group["params"]]
    trained = [id(p) for p in module.parameters() if p.requires_grad]
    assert sorted(seen) == sorted(trained), "each trained tensor is in one group"
    named = {group["name"]: group for group in optimizer.param_groups}
    assert len(named) == len(optimizer.param_groups), "names are unique"
    return named


def test_each_role_has_its_rate_and_vectors_have_no_decay() -> None:
    found = groups(Full(vision_from=0, lr=3e-5, connector_lr=2e-5, vision_lr=1e-6, weight_decay=0.1))
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in found.items()}
    assert rates == {
        "vision": (1e-6, 0.1),
        "vision/no_decay": (1e-6, 0.0),
        "connector": (2e-5, 0.1),
        "connector/no_decay": (2e-5, 0.0),
        "llm": (3e-5, 0.1),
        "llm/no_decay": (3e-5, 0.0),
    }


def test_a_role_without_a_rate_takes_the_common_one() -> None:
    found = groups(Full(blocks=1, lr=3e-5, connector_lr=None))
    assert {group["lr"] for group in found.values()} == {3e-5}


def test_a_connector_with_low_rank_updates_has_the_connectors_rate() -> None:
    found = groups(LoRA(rank=2, lr=1e-4, connector="lora", connector_lr=1e-5, weight_decay=0.1))
    rates = {name: (group["lr"], group["weight_decay"]) for name, group in found.items()}
    assert rates == {"llm": (1e-4, 0.1), "connector": (1e-5, 0.1)}
    assert len(found["connector"]["params"]) == 2 * 2  # type: ignore[arg-type]


def test_lora_plus_speeds_up_b_alone() -> None:
    found = groups(LoRA(rank=2, lr=1e-4, lora_plus_ratio=16.0, connector="frozen"))
    assert {name: group["lr"] for name, group in found.items()} == {"llm": 1e-4, "llm/lora_b": 16e-4}
    assert len(found["llm"]["params"]) == len(found["llm/lora_b"]["params"])  # type: ignore[arg-type]
