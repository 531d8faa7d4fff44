"""A resumed run has the settings of the run it continues, or those of the command line, or it stops."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mllm_lit.callbacks.checkpoint import CheckpointError
from mllm_lit.callbacks.resume import ResumeCallback, ResumeError
from mllm_lit.run_directory import RunDirectoryError
from tests.checkpoints.process import write_config

pytestmark = pytest.mark.slow

LORA = {"class_path": "mllm_lit.adapters.LoRA", "init_args": {"rank": 4, "lr": 1e-2, "weight_decay": 0.1}}


def fit(monkeypatch: pytest.MonkeyPatch, config: Path, *words: str) -> None:
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    main(["--config", str(config), *words])


@pytest.fixture
def started(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The configuration of a run with a checkpoint at each of its 12 steps."""
    config = write_config(tmp_path, tiny_folder, LORA, schedule="linear")
    settings = yaml.safe_load(config.read_text())
    settings["trainer"]["callbacks"][0]["init_args"] = {"every_n_train_steps": 1, "keep": -1}
    config.write_text(yaml.safe_dump(settings))
    fit(monkeypatch, config)
    return config


def stored(config: Path, version: int, step: int) -> dict[str, Any]:
    path = config.parent / "logs" / "toy" / f"version_{version}" / "checkpoints" / f"step={step}.ckpt"
    loaded: dict[str, Any] = torch.load(path, weights_only=True)
    return loaded


def at(config: Path, step: int) -> tuple[str, str]:
    return "--ckpt_path", str(config.parent / "logs" / "toy" / "version_0" / "checkpoints" / f"step={step}.ckpt")


def groups(config: Path, version: int, step: int) -> dict[str, tuple[float, float]]:
    found = stored(config, version, step)["optimizer_states"][0]["param_groups"]
    return {group["name"]: (group["lr"], group["weight_decay"]) for group in found}


def test_values_on_the_command_line_win(
    started: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    words = ("--model.adapter.lr", "1e-3", "--model.adapter.init_args.weight_decay=0.5", "--model.betas", "[0.5, 0.6]")
    fit(monkeypatch, started, *at(started, 6), *words)
    whole, resumed = groups(started, 0, 12), groups(started, 1, 12)
    assert whole["connector"][0] == resumed["connector"][0]
    for step in (7, 9):
        before, after = groups(started, 0, step)["llm"], groups(started, 1, step)["llm"]
        assert after[0] == pytest.approx(before[0] / 10, rel=1e-6), "the schedule goes on at the new rate"
        assert (before[1], after[1]) == (0.1, 0.5)
    group = stored(started, 1, 12)["optimizer_states"][0]["param_groups"][0]
    assert tuple(group["betas"]) == (0.5, 0.6)
    assert "model.adapter.lr is 0.001, as given on the command line; it was 0.01" in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.batch_size", "2"], r"data.batch_size x ranks: 4 in the checkpoint, 2 here"),
        (["--seed_everything", "7"], r"seed|42"),
        (["--trainer.accumulate_grad_batches", "2"], r"accumulate_grad_batches: 1 in the checkpoint, 2 here"),
        (["--model.adapter.dropout", "0.5"], r"model.adapter.dropout: 0.05 in the checkpoint, 0.5 here"),
        (["--config", "OVERLAY"], r"model.adapter.lr: 0.01 in the checkpoint, 0.001 here.*on the command line"),
    ],
)
def test_other_differences_stop_the_run(
    started: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str, tmp_path: Path
) -> None:
    overlay = tmp_path / "toy" / "toy.yaml"
    overlay.parent.mkdir()
    overlay.write_text("model: {adapter: {init_args: {lr: 1.0e-3}}}\n")
    words = [word.replace("OVERLAY", str(overlay)) for word in words]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        fit(monkeypatch, started, *at(started, 6), *words)


def test_what_differs_is_known_before_anything_is_loaded(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.backbones import Backbone

    monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(ResumeError, match="model.adapter.rank: 4 in the checkpoint, 8 here"):
        fit(monkeypatch, started, *at(started, 6), "--model.adapter.rank", "8")
    other = {"class_path": "mllm_lit.adapters.IA3"}
    with pytest.raises(ResumeError, match=r"model.adapter: mllm_lit.adapters.LoRA in the checkpoint, \S*IA3 here"):
        fit(monkeypatch, started, *at(started, 6), "--model.adapter", json.dumps(other))
    with pytest.raises(ResumeError, match="seed_everything: 42 in the checkpoint, 7 here"):
        fit(monkeypatch, started, *at(started, 6), "--seed_everything", "7")


def test_best_is_not_a_checkpoint_here(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CheckpointError, match="--ckpt_path best: a run keeps its newest checkpoints"):
        fit(monkeypatch, started, "--ckpt_path", "best")


def test_a_failed_start_leaves_nothing_and_last_finds_the_run_before_it(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = started.parent / "logs" / "toy"
    with pytest.raises(Exception, match="none"):
        fit(monkeypatch, started, "--data.train_split", "none")
    assert [path.name for path in logs.iterdir()] == ["version_0"]
    fit(monkeypatch, started, "--ckpt_path", "last")
    assert "version_0" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--version", "../../x"], ["--experiment", ".."], ["--version", "a/b"]])
def test_nothing_is_written_outside_of_the_output_folder(
    words: list[str], started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunDirectoryError, match="expected the name of a folder in"):
        fit(monkeypatch, started, *words)


@pytest.mark.parametrize("logger", ["false", "lightning.pytorch.loggers.CSVLogger"])
def test_the_run_directory_is_ours_whatever_the_logger(
    logger: str, started: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--trainer.logger.save_dir", str(started.parent / "csv")] if "CSV" in logger else []
    for version in ("version_1", "version_2"):
        fit(monkeypatch, started, "--trainer.logger", logger, *more, "--trainer.max_steps", "1")
        folder = started.parent / "logs" / "toy" / version
        found = {path.name for path in folder.iterdir()}
        assert {"config.yaml", "summary.json", "adapter", "checkpoints", "predictions"} <= found
    with pytest.raises(RunDirectoryError, match="nothing is overwritten"):
        fit(monkeypatch, started, "--trainer.logger", logger, *more, "--version", "version_1")


def test_seconds_of_training_go_on(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that a checkpoint has not stopped would begin anew."""
    seconds = [stored(started, 0, step)["callbacks"]["SummaryCallback"]["seconds"] for step in (2, 6, 12)]
    assert 0 < seconds[0] < seconds[1] < seconds[2]
    fit(monkeypatch, started, *at(started, 11))
    resumed = json.loads((started.parent / "logs" / "toy" / "version_1" / "summary.json").read_text())["cost"]
    assert resumed["train_seconds"] > stored(started, 0, 11)["callbacks"]["SummaryCallback"]["seconds"]


def test_what_does_not_touch_the_weights_may_differ(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit(monkeypatch, started, *at(started, 11), "--data.eval_tokens", "1", "--model.max_new_tokens", "2")
    one, other = (stored(started, version, 12)["state_dict"] for version in (0, 1))
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name])


def test_last_takes_up_a_run_or_begins_it(
    started: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = started.parent / "logs" / "toy"
    fit(monkeypatch, started, "--ckpt_path", "last")
    assert "Resuming from" in capsys.readouterr().out
    assert [path.name for path in logs.iterdir()] == ["version_0"], "it goes on in the run's own directory"
    fit(monkeypatch, started, "--ckpt_path", "last", "--version", "new")
    assert "starting from the beginning" in capsys.readouterr().out
    assert (logs / "new" / "summary.json").is_file()


def test_a_run_is_tested_from_its_last_checkpoint(started: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.callbacks.checkpoint import CheckpointError
    from mllm_lit.cli import main

    folder = started.parent / "logs" / "toy" / "version_0"
    config = (folder / "config.yaml").read_text()
    main(["test", "--config", str(started), "--ckpt_path", "last"])
    tested = (folder / "predictions" / "test" / "toy.jsonl").read_text()
    assert tested == (folder / "predictions" / "after" / "toy.jsonl").read_text()
    assert (folder / "config.yaml").read_text() == config, "the run's own configuration stays"
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        main(["test", "--config", str(started), "--ckpt_path", "last", "--version", "none"])


def test_one_rank_of_eight_rows_is_two_of_four() -> None:
    class Fit:
        precision = "32-true"
        state = type("State", (), {"fn": "fit"})
        world_size = 2

    checkpoint: dict[str, Any] = {}
    ResumeCallback({"data.batch_size": 4}).on_save_checkpoint(Fit, None, checkpoint)  # type: ignore[arg-type]
    Fit.world_size = 1
    ResumeCallback({"data.batch_size": 8}).on_load_checkpoint(Fit, None, checkpoint)  # type: ignore[arg-type]
    with pytest.raises(ResumeError, match="8 in the checkpoint, 4 here"):
        ResumeCallback({"data.batch_size": 4}).on_load_checkpoint(Fit, None, checkpoint)  # type: ignore[arg-type]
