"""Runs whose rows lie several to a sequence: what a step holds, where it goes on, and what is refused."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mllm_lit.adapters.methods import Prefix
from mllm_lit.data.collate import Batch, Collate
from mllm_lit.data.lengths import row_lengths
from mllm_lit.datamodule import VQADataModule
from mllm_lit.errors import SettingError
from mllm_lit.module import MLLMModule
from tests.data.test_replay import Losses
from tests.test_module import Stop, module, trainer, weights
from tests.toy import Album

WAYS: dict[str, dict[str, Any]] = {
    "shared": {"share_pictures": True},
    "packed": {"pack": True},
    "both": {"share_pictures": True, "pack": True, "batch_tokens": 150},
    "alone, by tokens": {"batch_tokens": 150},
}
each_way = pytest.mark.parametrize("way", WAYS)


def data(root: Path, **more: Any) -> VQADataModule:
    return VQADataModule(Album(), root, **{"batch_size": 5, **more})


class Seen(L.Callback):
    """The batches of a run."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, i: int) -> None:
        self.batches.append(batch)


def test_lengths_are_those_of_the_parts(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    model.configure_model()
    collate, rows = model.collate, Album().rows(tmp_path, "train")
    lengths = row_lengths(rows, collate, shared=True)
    assert lengths.rows == [Collate(collate.processor)([row]).tokens for row in rows]
    for i, row in enumerate(rows):
        together = [j for j, other in enumerate(rows) if other.images == row.images and row.images]
        assert together in ([], [j for j in range(len(rows)) if lengths.groups[j] == lengths.groups[i]])
        assert bool(lengths.shared[i]) == bool(row.images)
    assert row_lengths(rows, collate).groups == [*range(len(rows))]


@each_way
def test_every_row_is_trained_on_once_an_epoch(way: str, tiny_folder: Path, tmp_path: Path) -> None:
    seen, rows = Seen(), data(tmp_path, **WAYS[way])
    trainer(tmp_path, callbacks=[seen], max_epochs=1).fit(module(tiny_folder), datamodule=rows)
    ids = [sample.id for batch in seen.batches for sample in batch.samples]
    assert sorted(ids) == sorted(row.id for row in rows.train_rows)
    if way == "alone, by tokens":
        assert max(batch.labels.numel() for batch in seen.batches) <= 150
    elif way == "both":
        assert max(batch.tokens for batch in seen.batches) <= 150
    else:
        assert max(map(len, seen.batches)) == 5
    if "share_pictures" in WAYS[way]:
        for batch in seen.batches:
            shown = {ref for sample in batch.samples for ref in sample.images}
            assert len(batch.inputs.get("pixel_values", [])) == len(shown)
            others = [row.images[0] for row in rows.train_rows if row.images and row.id not in ids]
            assert not shown & {*others}


@each_way
def test_the_logged_loss_is_that_of_the_rows(way: str, tiny_folder: Path, tmp_path: Path) -> None:
    losses, model = Losses(), module(tiny_folder)
    model.adapter.dropout = 0.0  # type: ignore[attr-defined]
    rows = data(tmp_path, **WAYS[way])
    trainer(tmp_path, callbacks=[losses], max_epochs=1, log_every_n_steps=1).fit(model, datamodule=rows)
    for logged, seen in zip(losses.logged, losses.seen, strict=True):
        assert logged["loss"] == pytest.approx(seen["loss"], rel=1e-4)


@each_way
def test_a_run_goes_on_where_it_stopped(way: str, tiny_folder: Path, tmp_path: Path) -> None:
    def run(folder: str, callbacks: list[L.Callback], ckpt: str | None = None) -> MLLMModule:
        model = module(tiny_folder)
        keep = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, callbacks=[*callbacks, keep], max_epochs=2)
        fit.fit(model, datamodule=data(tmp_path, **WAYS[way]), ckpt_path=ckpt)
        return model

    whole = weights(run("whole", []))
    with pytest.raises(SystemExit):
        run("cut", [Stop(4)])
    resumed = weights(run("resumed", [], str(tmp_path / "cut" / "step=3.ckpt")))
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


@pytest.mark.parametrize("setting", ["share_pictures", "pack"])
def test_what_cannot_share_is_refused_before_the_first_step(setting: str, tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    model.adapter = Prefix(tokens=3)
    with pytest.raises(SettingError, match=rf"data.{setting} is true, but .* virtual tokens .* Set data.{setting} to"):
        trainer(tmp_path).fit(model, datamodule=data(tmp_path, **{setting: True}))


def test_a_window_shorter_than_a_row_is_refused(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mllm_lit.datamodule.sliding_window", lambda net: 20)
    with pytest.raises(SettingError, match=r"data.pack is true, .* a row has \d+ tokens, and the LLM sees 20 back"):
        trainer(tmp_path).fit(module(tiny_folder), datamodule=data(tmp_path, pack=True))


def test_a_row_beyond_the_tokens_of_a_batch_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"data.batch_tokens is 9, but .*: sample '.*' has \d+ tokens"):
        trainer(tmp_path).fit(module(tiny_folder), datamodule=data(tmp_path, batch_tokens=9))


def test_block_masks_are_for_training_alone(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where they are taken, steps attend by them, and evaluations as the backbone was loaded."""
    attended: list[tuple[str, bool]] = []

    class Attention(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, i: int) -> None:
            assert isinstance(model, MLLMModule)
            assert model.loaded is not None
            config: Any = model.loaded.model.config
            attended.append((config.get_text_config()._attn_implementation, True))
            config.get_text_config()._attn_implementation = "sdpa"  # torch has no backward pass of theirs on a CPU

        def on_train_batch_end(self, trainer: L.Trainer, model: L.LightningModule, *args: Any) -> None:
            assert isinstance(model, MLLMModule)
            assert model.loaded is not None
            config: Any = model.loaded.model.config
            config.get_text_config()._attn_implementation = "flex_attention"

        def on_evaluation_batch_end(self, trainer: L.Trainer, model: MLLMModule) -> None:
            assert model.loaded is not None
            config: Any = model.loaded.model.config
            attended.append((config.get_text_config()._attn_implementation, False))

    monkeypatch.setattr("mllm_lit.module.takes_block_masks", lambda model, device: True)
    fit = trainer(tmp_path, callbacks=[Attention()], max_steps=1, limit_val_batches=1, val_check_interval=1)
    model = module(tiny_folder)
    fit.fit(model, datamodule=data(tmp_path, share_pictures=True))
    assert attended[0] == ("flex_attention", True)
    assert ("sdpa", False) in attended
    assert ("flex_attention", False) not in attended
    assert model.loaded is not None
    assert model.loaded.model.config.get_text_config()._attn_implementation == "sdpa"
