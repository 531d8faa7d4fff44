"""Every adapter gone on with, or merged into the weights under a new one, or refused."""

from pathlib import Path

import pytest
import torch

from mllm_lit.adapters import AdapterError, LoRA
from mllm_lit.adapters.merge import identity_with, merge_into
from mllm_lit.backbones.load import checkpoint_activations
from tests.adapters.test_contract import CASES, MUTATED, TABLE, VIRTUAL, backbone, inputs, learn, logits
from tests.processors.beds import build

ADDS = (*VIRTUAL, "bottleneck", "bottleneck parallel", "bottleneck normal")
"""Cases that add computations."""


@pytest.mark.parametrize(("case", "family"), TABLE)
def test_what_was_trained_is_gone_on_with_or_merged(case: str, family: str, tmp_path: Path) -> None:
    made = build(family)
    batch, loaded = inputs(made), backbone(made)
    torch.manual_seed(0)
    adapter = CASES[case]()
    module = adapter.attach(loaded)
    learn(adapter, module, loaded, batch)
    after = logits(module.eval(), batch)
    adapter.save(module, tmp_path)

    torch.manual_seed(1)
    fresh, second = CASES[case](), backbone(build(family))
    again = fresh.attach(second)
    if case in MUTATED or case == "prefix projected":
        with pytest.raises(AdapterError, match="cannot be taken apart again|for use rather than for more training"):
            fresh.go_on_from(second, again, tmp_path)
    else:
        opened = [name for name, p in again.named_parameters() if p.requires_grad]
        fresh.go_on_from(second, again, tmp_path)
        assert torch.equal(logits(again.eval(), batch), after)
        assert [name for name, p in again.named_parameters() if p.requires_grad] == opened

    third = backbone(build(family))
    names, modules = [name for name, _ in third.model.named_parameters()], len(list(third.model.modules()))
    assert fresh.adds_computations == (case in ADDS)
    if case in ADDS:
        with pytest.raises(AdapterError, match="so it cannot be merged"):
            merge_into(third, tmp_path)
        return
    merge_into(third, tmp_path)
    assert (logits(third.model, batch) - after).abs().max() < 2e-5
    assert [name for name, _ in third.model.named_parameters()] == names
    assert len(list(third.model.modules())) == modules, "nothing of the adapter is left"
    assert third.identity == identity_with(loaded.identity, tmp_path) != loaded.identity
    above = LoRA(rank=2, connector="frozen").attach(third)
    assert (logits(above.eval(), batch) - after).abs().max() < 2e-5


def test_merging_leaves_no_gradient_where_activations_are_recomputed(tmp_path: Path) -> None:
    adapter, loaded = CASES["lora"](), backbone(build("llava"))
    adapter.save(adapter.attach(loaded), tmp_path)
    fresh = backbone(build("llava"))
    fresh.model.requires_grad_(False)
    checkpoint_activations(fresh.model, fresh.layout, "llm")
    merge_into(fresh, tmp_path)
    assert not fresh.model.get_input_embeddings()(torch.zeros(1, 1, dtype=torch.long)).requires_grad


def test_an_identity_changes_with_every_file_of_an_adapter(tmp_path: Path) -> None:
    adapter, loaded = CASES["lora"](), backbone(build("llava"))
    adapter.save(adapter.attach(loaded), tmp_path)
    seen = {loaded.identity, identity_with(loaded.identity, tmp_path), identity_with("another", tmp_path)}
    for file in ("adapter_config.json", "adapter_model.safetensors", "connector.safetensors"):
        (tmp_path / file).write_bytes((tmp_path / file).read_bytes() + b" ")
        seen.add(identity_with(loaded.identity, tmp_path))
    assert len(seen) == 6
    (tmp_path / "README.md").write_text("changed")
    assert identity_with(loaded.identity, tmp_path) in seen
