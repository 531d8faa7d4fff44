"""Source rows mixed into the target's: which, how many, and that their loss is told apart."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mllm_lit.answers import answer_nll
from mllm_lit.data.sample import Sample
from mllm_lit.datamodule import Source, Sources, VQADataModule
from mllm_lit.errors import UserError
from mllm_lit.module import MLLMModule
from mllm_lit.tasks import DatasetError
from tests.test_module import Stop, module, trainer, weights
from tests.toy import Toy, ToySource


def data(root: Path, **more: Any) -> VQADataModule:
    sets = {name: Source(ToySource(), root) for name in ("one", "two")}
    sources, others = Sources(sets), Sources({"three": Source(ToySource(), root)})
    return VQADataModule(Toy(), root, sources, others, batch_size=4, **{"replay": 0.5, **more})


def mixed(root: Path, **more: Any) -> list[Sample]:
    rows = data(root, **more)
    rows.setup("fit")
    return rows.train_rows


def test_the_share_is_of_the_targets_rows_and_even_over_the_sources(tmp_path: Path) -> None:
    rows = mixed(tmp_path)
    assert [sum(row.source == name for row in rows) for name in ("", "one", "two")] == [22, 6, 5]
    assert all(row.id.startswith(f"{row.source}/train-") for row in rows if row.source)
    assert len({row.id for row in rows}) == len(rows)
    assert [row.source for row in mixed(tmp_path, replay=0.1, replay_from=["two"])].count("two") == 2
    both = [row.source for row in mixed(tmp_path, replay_from=["three", "one"])]
    assert [both.count(name) for name in ("one", "two", "three")] == [5, 0, 6]


def test_the_choice_is_the_seeds(tmp_path: Path) -> None:
    assert mixed(tmp_path, seed=1) == mixed(tmp_path, seed=1)
    assert mixed(tmp_path, seed=1) != mixed(tmp_path, seed=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"replay": -0.1}, "data.replay is -0.1; expected a finite number at least 0"),
        ({"replay": 0.01}, "that share of 22 rows is none"),
        ({"replay": 3.0}, "asks for 33 rows of 'one', whose split 'train' has 22"),
        ({"replay_from": ["four"]}, r"names \['four'\]; the sources are: one, two; the others \(data.others\): three"),
        ({"replay_from": []}, "there is no set to replay"),
    ],
)
def test_what_cannot_be_mixed_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        mixed(tmp_path, **settings)


def test_rows_that_measure_forgetting_are_never_trained_on(tmp_path: Path) -> None:
    held = Sources({"one": Source(ToySource(), tmp_path, split="train")})
    with pytest.raises(DatasetError, match="would train on what measures"):
        VQADataModule(Toy(), tmp_path, held, replay=0.5).setup("fit")


class Losses(L.Callback):
    """The losses of every optimizer step, and the answer tokens and NLL of each part by the rows themselves."""

    def __init__(self) -> None:
        self.logged: list[dict[str, float]] = []
        self.seen: list[dict[str, float]] = []

    def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, i: int) -> None:
        assert isinstance(model, MLLMModule)
        with torch.no_grad():
            nll, counts = answer_nll(model.net, batch)
        parts = {"loss": [True] * len(batch), "loss_replay": [bool(row.source) for row in batch.samples]}
        parts["loss_target"] = [not row.source for row in batch.samples]
        means = {name: float(nll[part].sum() / counts[part].sum()) for name, part in parts.items() if any(part)}
        self.seen.append(means)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        values = {k.removeprefix("train/"): float(v) for k, v in trainer.logged_metrics.items()}
        self.logged.append({name: value for name, value in values.items() if name.startswith("loss")})


def test_the_loss_of_replayed_rows_is_logged_apart(tiny_folder: Path, tmp_path: Path) -> None:
    losses = Losses()
    model = module(tiny_folder)
    model.adapter.dropout = 0.0  # type: ignore[attr-defined]
    trainer(tmp_path, callbacks=[losses], log_every_n_steps=1).fit(model, datamodule=data(tmp_path))
    assert any(set(step) == {"loss", "loss_replay", "loss_target"} for step in losses.seen)
    for logged, seen in zip(losses.logged, losses.seen, strict=True):
        # What was logged in an earlier step stays in Lightning's record.
        assert {name: logged[name] for name in seen} == pytest.approx(seen, rel=1e-4)


def test_padding_is_the_share_of_positions_that_hold_nothing(tiny_folder: Path, tmp_path: Path) -> None:
    masks: list[torch.Tensor] = []

    class Masks(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, model: L.LightningModule, batch: Any, i: int) -> None:
            masks.append(batch.inputs["attention_mask"].flatten())

    fit = trainer(tmp_path, callbacks=[Masks()], log_every_n_steps=1)
    fit.fit(module(tiny_folder), datamodule=data(tmp_path))
    padding = 1 - torch.cat(masks).float().mean().item()
    assert padding > 0
    assert fit.logged_metrics["train/padding"] == pytest.approx(padding, rel=1e-4)


def test_a_mixture_resumes_where_it_stopped(tiny_folder: Path, tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(folder: str, callbacks: list[L.Callback], ckpt: str | None = None, **more: Any) -> MLLMModule:
        model = module(tiny_folder)
        keep = ModelCheckpoint(tmp_path / folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
        trainer(tmp_path, callbacks=[*callbacks, keep]).fit(model, datamodule=data(tmp_path, **more), ckpt_path=ckpt)
        return model

    whole = weights(run("whole", []))
    with pytest.raises(SystemExit):
        run("cut", [Stop(4)])
    cut = str(tmp_path / "cut" / "step=3.ckpt")
    resumed = weights(run("resumed", [], cut))
    for name in whole:
        assert torch.equal(whole[name], resumed[name]), name
    with pytest.raises(ValueError, match="its position in the data means nothing here"):
        run("other", [], cut, replay_from=["one"])
