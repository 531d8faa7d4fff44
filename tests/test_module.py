"""The training step: its loss, its gradients, and where it resumes."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mllm_lit.adapters import Full, LoRA
from mllm_lit.answers import answer_nll, greedy_answers
from mllm_lit.backbones import Backbone, BackboneError
from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.datamodule import Source, Sources, VQADataModule
from mllm_lit.module import MLLMModule, NonFiniteLoss
from tests.toy import Toy, ToySource


def module(folder: Path, adapter: Any = None, **more: Any) -> MLLMModule:
    adapter = adapter or LoRA(rank=4, alpha=8, dropout=0.1, lr=1e-2, connector_lr=1e-3)
    return MLLMModule(Backbone(path=str(folder), dtype="float32"), adapter, **more)


def data(root: Path, batch_size: int = 4, sources: bool = False, **more: Any) -> VQADataModule:
    held = Sources({"source": Source(ToySource(), root)}) if sources else None
    return VQADataModule(Toy(), root, held, batch_size=batch_size, **more)


def trainer(root: Path, **more: Any) -> L.Trainer:
    settings: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 0, **more}
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=any("Checkpoint" in type(c).__name__ for c in more.get("callbacks", [])),
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        default_root_dir=root,
        **settings,
    )


def weights(model: MLLMModule) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.trainable()}


def test_nll_is_that_of_the_models_own_loss(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    model.configure_model()
    assert model.net is not None
    model.net.eval()
    rows = Toy().rows(tmp_path, "train")[:6]
    batch = Collate(model.collate.processor)(rows)
    nll, counts = answer_nll(model.net, batch)
    assert counts.tolist() == (batch.labels != IGNORE).sum(1).tolist()
    for i, row in enumerate(rows):
        alone = Collate(model.collate.processor)([row])
        own = model.net(**alone.inputs, labels=alone.labels).loss
        torch.testing.assert_close(nll[i] / counts[i], own)


@pytest.mark.parametrize("last", [22, 19])
def test_accumulation_equals_the_large_batch(tiny_folder: Path, tmp_path: Path, last: int) -> None:
    """Answers of unequal length, and (19 rows) a last window that is cut short."""

    def train(batch_size: int, accumulate: int) -> dict[str, Tensor]:
        model = module(tiny_folder, Full(blocks="all", lr=1e-3, connector="tuned", connector_lr=1e-3))
        rows = data(tmp_path, batch_size)
        rows.setup("fit")
        rows.train_rows = rows.train_rows[:last]
        # One order for both, whatever the batch size: the sampler's is by batch.
        order = [range(i, min(i + batch_size, last)) for i in range(0, last, batch_size)]
        rows.train_dataloader = lambda: DataLoader(  # type: ignore[method-assign]
            rows.train_rows,  # type: ignore[arg-type]
            collate_fn=Collate(model.collate.processor),
            batch_sampler=order,
        )
        trainer(tmp_path, accumulate_grad_batches=accumulate).fit(model, datamodule=rows)
        return weights(model)

    large, small = train(8, 1), train(2, 4)
    for name in large:
        torch.testing.assert_close(small[name], large[name], rtol=1e-4, atol=2e-6)


def test_a_mean_of_means_would_have_been_seen(tiny_folder: Path, tmp_path: Path) -> None:
    """The rows of the test above do tell the token mean from the mean of the batches' means."""
    model = module(tiny_folder)
    model.configure_model()
    rows = Toy().rows(tmp_path, "train")[:8]
    nll, counts = answer_nll(model.net, Collate(model.collate.processor)(rows))
    means = [(nll[i : i + 2].sum() / counts[i : i + 2].sum()).item() for i in range(0, 8, 2)]
    assert abs(sum(means) / 4 - (nll.sum() / counts.sum()).item()) > 1e-3


class Stop(L.Callback):
    """Ends a run after a number of optimizer steps, as a kill would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step >= self.step:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 2, 3, 4, 5])
def test_resume_equals_uninterrupted(tiny_folder: Path, tmp_path: Path, step: int) -> None:
    """Bit for bit, dropout on, across an epoch's end (three steps an epoch), with accumulation."""
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(folder: str, callbacks: list[L.Callback], ckpt: str | None = None) -> MLLMModule:
        model = module(tiny_folder)
        keep = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        fit = trainer(tmp_path, max_epochs=2, accumulate_grad_batches=2, callbacks=[*callbacks, keep])
        fit.fit(model, datamodule=data(tmp_path), ckpt_path=ckpt)
        return model

    whole = weights(run("whole", []))
    with pytest.raises(SystemExit):
        run("cut", [Stop(step + 1)])
    resumed = weights(run("resumed", [], str(tmp_path / "cut" / f"step={step}.ckpt")))
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name


def test_a_checkpoint_holds_what_trains_and_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(model, datamodule=data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    stored = torch.load(tmp_path / "a.ckpt", weights_only=True)["state_dict"]
    assert {name.removeprefix("net.") for name in stored} == {name for name, _ in model.trainable()}


def test_a_checkpoint_of_another_backbone_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    from tests.tiny import save_tiny

    fit = trainer(tmp_path, max_steps=1)
    fit.fit(module(tiny_folder), datamodule=data(tmp_path))
    fit.save_checkpoint(tmp_path / "a.ckpt")
    other = module(save_tiny(tmp_path / "other", seed=1))
    with pytest.raises(ValueError, match=r"was trained on the backbone .* but this run has"):
        trainer(tmp_path).fit(other, datamodule=data(tmp_path), ckpt_path=str(tmp_path / "a.ckpt"))
    fewer = module(tiny_folder, LoRA(rank=2, alpha=4))
    with pytest.raises(ValueError, match=r"does not fit this run's LoRA.* of another shape"):
        trainer(tmp_path).fit(fewer, datamodule=data(tmp_path), ckpt_path=str(tmp_path / "a.ckpt"))


def test_a_non_finite_loss_stops_before_a_weight_moves(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)

    class Break(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, i: int) -> None:
            if i == 3:
                self.before = weights(model)
                self.ids = [sample.id for sample in batch.samples]
                batch.inputs["pixel_values"] = torch.full_like(batch.inputs["pixel_values"], torch.nan)

    broken = Break()
    with pytest.raises(NonFiniteLoss) as error:
        trainer(tmp_path, callbacks=[broken]).fit(model, datamodule=data(tmp_path))
    assert "optimizer step 4" in str(error.value)
    assert ", ".join(broken.ids) in str(error.value)
    assert all(torch.equal(p, broken.before[name]) for name, p in model.trainable())


def test_features_that_do_not_fit_the_image_tokens_are_explained(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    model.configure_model()
    model.collate.processor.num_additional_image_tokens = 3
    batch = Collate(model.collate.processor)(Toy().rows(tmp_path, "train")[:2])
    with pytest.raises(ValueError, match=r"do not fit the image tokens of the text \(samples train-0, train-1\)"):
        answer_nll(model.net, batch)


def test_generation_in_a_batch_equals_one_by_one(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder)
    model.configure_model()
    assert model.net is not None
    model.net.eval()
    rows = Toy().rows(tmp_path, "train")[:6]
    collate = Collate(model.collate.processor, with_prompt=True)
    together = greedy_answers(model.net, model.collate, collate(rows), 8)
    assert together == [greedy_answers(model.net, model.collate, collate([row]), 8)[0] for row in rows]
    assert len(set(together)) > 1


def test_the_learning_rates_reach_the_optimizer(tiny_folder: Path, tmp_path: Path) -> None:
    model = module(tiny_folder, LoRA(rank=4, lr=3e-4, connector="tuned", connector_lr=5e-5), warmup=0.0)
    fit = trainer(tmp_path, max_steps=1)
    fit.fit(model, datamodule=data(tmp_path))
    groups = fit.optimizers[0].param_groups
    assert {group["name"]: group["initial_lr"] for group in groups} == {
        "llm": 3e-4,
        "connector": 5e-5,
        "connector/no_decay": 5e-5,
    }
    trained = {id(p) for group in groups for p in group["params"]}
    assert trained == {id(p) for _, p in model.trainable()}


def test_a_batch_without_pictures_leaves_a_connector_that_trains_alone_as_it_is(
    tiny_folder: Path, tmp_path: Path
) -> None:
    class Moved(L.Callback):
        def __init__(self) -> None:
            self.rows: list[tuple[bool, bool]] = []

        def on_train_batch_start(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            self.then = weights(module)

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, *args: Any) -> None:
            now = weights(module)
            moved = any(not torch.equal(now[name], tensor) for name, tensor in self.then.items())
            self.rows.append((bool(batch.samples[0].images), moved))

    moved = Moved()
    model = module(tiny_folder, Full(blocks=0, connector_lr=1e-2), warmup=0.0)
    trainer(tmp_path, callbacks=[moved], gradient_clip_val=1.0).fit(model, datamodule=data(tmp_path, batch_size=1))
    assert len(moved.rows) == 22
    assert (False, False) in moved.rows
    assert all(pictured == changed for pictured, changed in moved.rows[:-1])  # the last step's rate is 0


@pytest.mark.parametrize(("precision", "dtype"), [("32-true", torch.float32), ("bf16-mixed", torch.bfloat16)])
def test_the_backbone_is_loaded_for_the_precision_where_cuda_has_bf16(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, dtype: torch.dtype
) -> None:
    """On a machine with a GPU, too, a run in fp32 must not mix a bf16 backbone with the adapter's fp32."""
    model = MLLMModule(Backbone(path=str(tiny_folder)), LoRA(rank=4))
    model.trainer = trainer(tmp_path, precision=precision)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    model.configure_model()
    assert model.loaded is not None
    assert model.loaded.model.get_input_embeddings().weight.dtype == dtype


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_two_dtypes_without_autocast_are_refused(tiny_folder: Path, tmp_path: Path, dtype: Any) -> None:
    model = MLLMModule(Backbone(path=str(tiny_folder), dtype=dtype), LoRA(rank=4))
    with pytest.raises(BackboneError, match=rf"weights in {dtype}, float32.* Set it to bf16-mixed"):
        trainer(tmp_path).fit(model, datamodule=data(tmp_path))
