"""Adapters that begin from what layers read, in training: what they look at, resuming, sources, refusals."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from mllm_lit.adapters import AdapterError, LoRA
from mllm_lit.adapters.callback import source_rows
from mllm_lit.adapters.subspace import low_rank_layers
from tests.test_module import Stop, data, module, trainer, weights

KINDS: dict[str, dict[str, Any]] = {
    "corda": {"init": "corda", "init_rows": 6},
    "lora_null": {"init": "lora_null", "init_rows": 6},
    "sources": {"init": "corda", "init_rows": 6, "init_from": "sources"},
}


def lora(kind: str) -> LoRA:
    return LoRA(rank=4, alpha=8, dropout=0.1, lr=1e-2, connector_lr=1e-3, **KINDS[kind])


class Look(L.Callback):
    """What the low-rank layers hold and the model says when training begins, its adapter on."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        rows = trainer.datamodule.train_rows[:2]  # type: ignore[attr-defined]
        pl_module.net.eval()
        with torch.no_grad():
            self.logits = pl_module.net(**pl_module.collate(rows).inputs).logits
        pl_module.net.train()
        layers = low_rank_layers(pl_module.net)
        self.updates = {name: layer.get_delta_weight("default").detach().clone() for name, layer in layers.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_it_begins_as_the_backbone_in_a_part_of_its_weights(kind: str, tiny_folder: Path, tmp_path: Path) -> None:
    looks = []
    for adapter in (lora(kind), LoRA(rank=4)):
        looks.append(Look())
        fit = trainer(tmp_path, max_steps=1, callbacks=[looks[-1]])
        fit.fit(module(tiny_folder, adapter), datamodule=data(tmp_path, sources=True))
    begun, plain = looks
    torch.testing.assert_close(begun.logits, plain.logits, atol=2e-5, rtol=0)  # W - BA + BA in fp32
    assert all(not update.any() for update in plain.updates.values())
    assert all(int(torch.linalg.matrix_rank(update)) == 4 for update in begun.updates.values())


def test_source_rows_come_in_turns_and_by_the_seed(tmp_path: Path) -> None:
    from mllm_lit.datamodule import Source, Sources, VQADataModule
    from tests.toy import Toy

    class Named(Toy):
        def rows(self, root: Path, split: str) -> list[Any]:
            return [f"{root.name} {split} {i}" for i in range(4)]

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    sets = Sources({name: Source(Named(), tmp_path / name) for name in ("one", "two")})
    made = VQADataModule(Toy(), tmp_path, sets)
    rows: list[Any] = source_rows(made, 1)
    assert [row.split()[0] for row in rows] == ["one", "two"] * 4
    assert sorted(rows) == [f"{name} train {i}" for name in ("one", "two") for i in range(4)]
    assert rows == source_rows(made, 1)
    assert rows != source_rows(made, 2)


@pytest.mark.parametrize(
    ("more", "sources", "message"),
    [
        ({}, False, "train splits have 0 rows"),
        ({"init_rows": 10_000}, True, "adapter.init_rows is 10000"),
        ({"init_from": "generated", "vision": "lora"}, True, "generated text has no picture"),
    ],
)
def test_refusals(more: dict[str, Any], sources: bool, message: str, tiny_folder: Path, tmp_path: Path) -> None:
    adapter = LoRA(rank=4, **{**KINDS["sources"], **more})
    with pytest.raises(AdapterError, match=message):
        trainer(tmp_path, max_steps=1).fit(module(tiny_folder, adapter), datamodule=data(tmp_path, sources=sources))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 3])
def test_resume_equals_uninterrupted(kind: str, step: int, tiny_folder: Path, tmp_path: Path) -> None:
    """Bit for bit, the weights under the update too, in an epoch and at its end; what is saved is the same LoRA."""

    def train(folder: str, ends: list[L.Callback], ckpt: Path | None = None) -> dict[str, Tensor]:
        model = module(tiny_folder, lora(kind))
        keep = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[*ends, keep])
        fit.fit(model, datamodule=data(tmp_path, sources=True), ckpt_path=ckpt)
        assert model.net is not None
        model.adapter.save(model.net, tmp_path / folder / "adapter")
        return weights(model) | {name: p for name, p in model.net.named_parameters() if "base_layer" in name}

    whole = train("whole", [])
    with pytest.raises(SystemExit):
        train("cut", [Stop(step + 1)])
    again = train("again", [], tmp_path / "cut" / f"step={step}.ckpt")
    assert whole.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in whole.items())
    first, second = (tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("whole", "again"))
    assert first.read_bytes() == second.read_bytes()
