"""What a strategy cannot do is refused before the first step, with what to use instead."""

from pathlib import Path
from typing import Any

import pytest

from mllm_lit.adapters import Adapter, AdapterError, LoRA, Peft, Prefix, Prompt
from mllm_lit.importance import Spider
from mllm_lit.strategies import FSDP2Strategy
from tests.adapters.test_contract import backbone
from tests.processors.beds import build
from tests.test_module import module


@pytest.mark.parametrize(
    "adapter",
    [
        *(LoRA(rank=2, init=init) for init in ("pissa", "corda")),
        Prefix(tokens=2),
        Prompt(tokens=2),
        Peft("OSF", {"effective_rank": 4}),
    ],
)
def test_what_cannot_be_sharded(adapter: Adapter) -> None:
    loaded = backbone(build("llava"))
    net = adapter.attach(loaded)
    with pytest.raises(AdapterError, match="Use DDP"):
        FSDP2Strategy().shard(net, loaded.model, loaded.layout, adapter)


@pytest.mark.parametrize(("rule", "accumulate"), [(Spider(), 1), (None, 2)])
def test_what_needs_the_gradients_that_deepspeed_hides(tiny_folder: Path, rule: Any, accumulate: int) -> None:
    class Trainer:
        accumulate_grad_batches = accumulate

    model = module(tiny_folder, importance=rule)
    model._hidden, model._trainer = True, Trainer()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="fsdp2.yaml or ddp.yaml"):
        model.on_fit_start()


def test_ddp_that_would_wait_for_ever(tiny_folder: Path) -> None:
    from lightning.pytorch.strategies import DDPStrategy

    from mllm_lit.module import look_for_unused

    told = DDPStrategy(find_unused_parameters=False)
    look_for_unused(told, {"llm"})
    with pytest.raises(ValueError, match="wait for it for ever"):
        look_for_unused(told, {"llm", "connector"})
    plain = DDPStrategy()
    look_for_unused(plain, {"llm"})
    assert "find_unused_parameters" not in plain._ddp_kwargs
