"""The package without its command line: under Lightning's own Trainer everything that the arguments ask for happens."""

import json
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from mllm_lit.adapters import Full, LoRA
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.callback import BackboneCallback
from mllm_lit.callbacks import ForgettingCallback
from mllm_lit.cli import build
from mllm_lit.data import Source, Sources, VQADataModule
from mllm_lit.errors import SettingError
from mllm_lit.evaluation import Evaluator
from mllm_lit.importance import Spider
from mllm_lit.importance.callback import ImportanceCallback
from mllm_lit.module import MLLMModule
from tests.test_run import config, run
from tests.toy import Toy, ToySource

pytestmark = pytest.mark.slow

__all__ = ["config"]  # the fixture


def module(tiny_folder: Path, **more: Any) -> MLLMModule:
    return MLLMModule(Backbone(str(tiny_folder)), Full(blocks=2, lr=1e-3), **more)


def data(root: Path) -> VQADataModule:
    return VQADataModule(Toy(), root, Sources({"source": Source(ToySource(), root)}), batch_size=4)


def weights(model: MLLMModule) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.trainable()}


def test_lightnings_trainer_gives_the_command_lines_weights(
    config: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, with a rule that changes every update, validations and accumulation."""
    full = {"class_path": "mllm_lit.adapters.Full", "init_args": {"blocks": 2, "lr": 1e-3}}
    settings = yaml.safe_load(config.read_text())
    settings["model"] |= {"adapter": full, "importance": {"class_path": "mllm_lit.importance.Spider"}}
    settings["trainer"] = {
        "precision": "32-true", "max_epochs": 2, "accumulate_grad_batches": 2,
        "gradient_clip_val": 1.0, "val_check_interval": 4,
        "callbacks": [{"class_path": "mllm_lit.callbacks.TrainableCheckpoint"}],
    }  # fmt: skip
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, "--config", str(config))
    stored = torch.load(tmp_path / "logs/toy_run/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    model = module(tiny_folder, importance=Spider())
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=1.0, val_check_interval=4,
        default_root_dir=tmp_path / "plain", logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, data(tmp_path / "data"))
    mine = weights(model)
    assert {f"net.{name}" for name in mine} == stored.keys()
    assert all(torch.equal(value, stored[f"net.{name}"]) for name, value in mine.items())
    kinds = [type(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    assert kinds[:2] == [BackboneCallback, ImportanceCallback]
    # Without the rule the weights are others: it was there.
    free = module(tiny_folder)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, gradient_clip_val=1.0, limit_val_batches=0,
        logger=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(free, data(tmp_path / "data"))
    assert any(not torch.equal(value, mine[name]) for name, value in weights(free).items())


def test_scores_and_a_second_fit_under_lightnings_trainer(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forgetting = ForgettingCallback()
    model, rows = module(tiny_folder, importance=Spider()), data(tmp_path)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
        callbacks=[forgetting],
    )  # fmt: skip
    trainer.fit(model, rows)
    assert forgetting.before is not None
    assert forgetting.after is not None
    assert forgetting.before.keys() == {"toy", "source"}
    assert forgetting.headlines == {"toy": "accuracy", "source": "accuracy"}
    scored = list(tmp_path.rglob("*.jsonl"))
    assert {path.relative_to(tmp_path).as_posix() for path in scored} >= {"predictions/after/toy.jsonl"}
    trainer.test(model, rows)
    assert forgetting.last == forgetting.after
    (values,) = trainer.validate(model, rows, verbose=False)
    assert set(values) >= {"val/toy/accuracy", "val/source/nll"}
    assert [type(one) for one in trainer.callbacks].count(ImportanceCallback) == 1  # type: ignore[attr-defined]


def test_build_makes_the_run_of_the_command_line(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a file and from a mapping, whatever the process was started with; nothing is written before it fits."""
    monkeypatch.setattr(sys, "argv", ["notebook", "--not", "ours"])
    settings = yaml.safe_load(config.read_text())
    words = ["--trainer.max_steps", "2", "--trainer.accelerator", "cpu"]
    for number, given in enumerate((config, settings | {"experiment": "toy_run"})):
        trainer, made, rows = build(given, words)
        assert (tmp_path / "logs").exists() == bool(number)
        trainer.fit(made, rows)
        folder = tmp_path / "logs" / "toy_run" / f"version_{number}"
        assert json.loads((folder / "summary.json").read_text())["cost"]["steps"] == 2
        assert (folder / "config.yaml").is_file()
    assert sys.argv == ["notebook", "--not", "ours"]
    both = [(tmp_path / "logs" / "toy_run" / f"version_{i}" / "config.yaml").read_text() for i in (0, 1)]
    first, second = (yaml.safe_load(text) for text in both)
    assert {key: first[key] for key in ("model", "data", "trainer")} == {
        key: second[key] for key in ("model", "data", "trainer")
    }


def test_a_module_that_has_been_trained_starts_from_what_it_is(tmp_path: Path, tiny_folder: Path) -> None:
    """Trained twice in one process, as in a sequence: before the second time stands what the first has left."""
    model = MLLMModule(Backbone(str(tiny_folder)), LoRA(rank=4, lr=1e-2, connector_lr=1e-2))
    scores = []
    for number in range(2):
        forgetting = ForgettingCallback(keep=tmp_path / "kept")
        trainer = L.Trainer(
            accelerator="cpu", max_steps=3, default_root_dir=tmp_path / str(number), logger=False,
            enable_checkpointing=False, callbacks=[forgetting],
        )  # fmt: skip
        trainer.fit(model, data(tmp_path))
        scores.append((forgetting.before, forgetting.after))
    (first, after), (second, _) = scores
    assert after is not None
    assert second == after
    assert first != after


def test_answers_of_a_start_that_failed_are_kept(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ask = Evaluator._ask
    batches = 0

    def fail(self: Evaluator, net: Any, batch: Any, *args: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise SettingError("a picture is broken")
        return ask(self, net, batch, *args)

    monkeypatch.setattr(Evaluator, "_ask", fail)
    words = ["--config", str(config), "--trainer.max_steps", "1", "--data.eval_tokens", "1"]
    with pytest.raises(SettingError, match="broken"):
        run(monkeypatch, *words)
    folder = tmp_path / "logs" / "toy_run" / "version_0"
    assert (folder / "predictions/before/toy.rank0.partial").read_text().count("\n") == 3
    run(monkeypatch, *words, "--version", "version_0", "--ckpt_path", "last")
    assert batches == 3 + 12 + 14, "two answers are taken"
    assert (folder / "summary.json").is_file()
