"""Saved adapters, as a stranger without this package reads them, and what is refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from mllm_lit.adapters import IA3, Adapter, AdapterError, Full, LoRA, Prefix
from tests.adapters.test_contract import backbone, inputs, learn, logits
from tests.processors.beds import build


def trained(adapter: Adapter, folder: Path) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Train a little, save, and return the logits and the batch they are of."""
    made = build("llava")
    batch = inputs(made)
    loaded = backbone(made)
    model = adapter.attach(loaded)
    model.eval()
    learn(adapter, model, loaded, batch)
    adapter.save(model, folder)
    return logits(model, batch), batch


@pytest.mark.parametrize("init", [True, "pissa"])
def test_peft_alone_reads_lora_and_the_connector(tmp_path: Path, init: bool | str) -> None:
    expected, batch = trained(LoRA(rank=4, init=init), tmp_path)
    model = build("llava").model
    model.load_state_dict(load_file(tmp_path / "connector.safetensors"), strict=False)
    stranger = PeftModel.from_pretrained(model, str(tmp_path)).eval()
    torch.testing.assert_close(logits(stranger, batch), expected, atol=2e-6, rtol=0)
    merged = stranger.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch), expected, atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_process_without_this_package_gives_the_same_logits(tmp_path: Path) -> None:
    """Strictly so: bit for bit, for the three methods of the study that are peft's own."""
    build("llava").model.save_pretrained(tmp_path / "backbone")
    adapters = {"lora": LoRA(rank=4), "ia3": IA3(), "prefix": Prefix(tokens=3)}
    expected = {}
    for name, adapter in adapters.items():
        expected[name], batch = trained(adapter, tmp_path / name)
    torch.save(batch, tmp_path / "batch.pt")
    script = Path(__file__).with_name("stranger.py")
    words = [tmp_path / "backbone", tmp_path / "batch.pt", *(tmp_path / name for name in adapters)]
    threads = {"OMP_NUM_THREADS": str(torch.get_num_threads())}  # by which sums are rounded
    subprocess.run([sys.executable, str(script), *map(str, words)], check=True, cwd=tmp_path, env=os.environ | threads)
    for name, logits_here in expected.items():
        assert torch.equal(torch.load(tmp_path / name / "logits.pt"), logits_here), name


def test_transformers_alone_reads_a_delta(tmp_path: Path) -> None:
    expected, batch = trained(Full(blocks=1), tmp_path)
    model = build("llava").model
    for file in ("connector.safetensors", "delta.safetensors"):
        assert not model.load_state_dict(load_file(tmp_path / file), strict=False).unexpected_keys
    assert torch.equal(logits(model, batch), expected)


def test_files_hold_what_was_trained_and_no_more(tmp_path: Path) -> None:
    trained(LoRA(rank=4, blocks=1, where="attention"), tmp_path)
    assert set(load_file(tmp_path / "connector.safetensors")) == {
        f"model.multi_modal_projector.linear_{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")
    }
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 4 * 2
    assert not (tmp_path / "delta.safetensors").exists()
    info = json.loads((tmp_path / "mllm_lit.json").read_text())
    assert info["adapter"] == "LoRA"
    assert info["backbone"] == backbone(build("llava")).identity


def test_another_backbone_is_refused(tmp_path: Path) -> None:
    trained(LoRA(rank=4), tmp_path)
    with pytest.raises(AdapterError, match="was trained on the backbone"):
        Adapter.load(backbone(build("llava", seed=1)), tmp_path)


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="has no mllm_lit.json"):
        Adapter.load(backbone(build("llava")), tmp_path)


@pytest.mark.parametrize("adapter", [LoRA(rank=4), Prefix(tokens=3), Full(blocks=1)])
def test_training_goes_on_from_a_saved_adapter(tmp_path: Path, adapter: Adapter) -> None:
    expected, batch = trained(adapter, tmp_path)
    loaded = backbone(build("llava"))
    model = adapter.attach(loaded)
    model.eval()
    loaded.model = model  # type: ignore[assignment]
    Adapter.load(loaded, tmp_path)
    assert torch.equal(logits(model, batch), expected)
    assert any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("saved", "attached"),
    [
        (LoRA(rank=4), LoRA(rank=2)),
        (LoRA(rank=4), LoRA(rank=4, where="mlp")),
        (Prefix(tokens=3, projection=True), Prefix(tokens=3, projection=True)),
    ],
)
def test_an_adapter_of_another_shape_is_refused(tmp_path: Path, saved: Adapter, attached: Adapter) -> None:
    trained(saved, tmp_path)
    loaded = backbone(build("llava"))
    loaded.model = attached.attach(loaded)  # type: ignore[assignment]
    with pytest.raises(AdapterError, match="attached adapter"):
        Adapter.load(loaded, tmp_path)


def test_saving_before_attaching_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="attach"):
        LoRA(rank=4).save(build("llava").model, tmp_path)
