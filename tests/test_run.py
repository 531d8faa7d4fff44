"""The command line, end to end, on the tiny model: what a run leaves behind, and how bad input is answered."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from mllm_lit.cli import build
from mllm_lit.errors import UsageError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs"


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    source = {"task": {"class_path": "tests.toy.ToySource"}, "root": str(data)}
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": str(CONFIGS / "adapters" / "lora.yaml"),
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "tests.toy.Toy"},
                "root": str(data),
                "sources": {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {"source": source}}},
                "batch_size": 4,
            },
        },
        # The same numbers on every CPU: auto is bf16 on some.
        "trainer": yaml.safe_load((CONFIGS / "trainer" / "default.yaml").read_text()) | {"precision": "32-true"},
        "output": str(tmp_path / "logs"),
    }
    path = tmp_path / "toy_run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    main([*arguments, "--trainer.accelerator", "cpu"])


def test_a_run_leaves_what_it_promises(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    often = ["--trainer.val_check_interval", "4", "--trainer.log_every_n_steps", "1"]
    run(monkeypatch, "--config", str(config), "--trainer.max_epochs", "1", *often)
    folder = tmp_path / "logs" / "toy_run" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["target"]["name"], summary["target"]["samples"]) == ("toy", 7)
    lost = summary["sources"]["source"]
    assert lost["forgetting"] == pytest.approx(lost["before"] - lost["after"])
    assert summary["tradeoff"].keys() == {"A_S", "A_S_normalised", "A_T", "H", "O"}
    assert summary["cost"]["steps"] == 6
    assert summary["seed"] == 42
    assert [(one["step"], one["epoch"], sorted(one["scores"])) for one in summary["during"]] == [
        (4, 4 / 6, ["source", "toy"])
    ]
    assert "toy_run: version_0" in (folder / "report.html").read_text(encoding="utf-8")
    for phase, rows in (("before", 7), ("step-000004", 5), ("after", 7)):
        lines = (folder / "predictions" / phase / "toy.jsonl").read_text().splitlines()
        assert len(lines) == rows
        assert {"id", "image", "question", "answer", "prediction", "score", "nll"} <= json.loads(lines[0]).keys()
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] == 6
    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {"train/loss", "lr/llm", "lr/connector", "train/tokens_per_second", "val/toy/nll", "test/source/nll"}
    assert scalars <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("test/toy/nll")] == [0, 6]
    assert "toy/before" in events.Tags()["images"]
    assert any("config" in tag for tag in events.Tags()["tensors"])


def test_the_main_job_on_what_comes_with_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    few = {"task": {"class_path": "mllm_lit.tasks.COCOCaptions"}, "split": "val2014", "max_samples": 4}
    overlay = tmp_path / "short.yaml"
    overlay.write_text(yaml.safe_dump({"data": {"init_args": {"sources": {"init_args": {"sets": {"captions": few}}}}}}))
    words = ["--config", str(CONFIGS / "scienceqa_lora.yaml"), "--config", str(overlay), "--experiment", "main"]
    words += ["--output", str(tmp_path / "logs"), "--trainer.max_steps", "3", "--trainer.val_check_interval", "2"]
    run(monkeypatch, *words, "--data.max_samples", "40", "--data.max_eval_samples", "8", "--data.val_samples", "4")
    folder = tmp_path / "logs" / "main" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["target"]["name"], summary["cost"]["steps"]) == ("scienceqa", 3)
    assert set(summary["sources"]) == {"captions"}
    assert {path.name for path in (folder / "adapter").iterdir()} >= {"adapter_config.json", "connector.safetensors"}
    said, heard = capfd.readouterr()
    untold = ("TPU", "Tip:", "FLOPs", "GPU available", "| ---", "Warning", "logging interval")
    assert not [word for word in untold if word in said + heard]
    table = [line for line in said.splitlines() if line.split()[:1] in (["role"], ["vision"], ["llm"], ["all"])]
    assert len(table) == 4
    assert max(map(len, said.splitlines()[: said.splitlines().index(table[-1])])) <= 80
    assert len([line for line in said.splitlines() if line.startswith("step 2: scienceqa ")]) == 1


def test_a_first_try_is_short_everywhere(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(monkeypatch, "--config", str(config), "--smoke", "--data.max_samples", "12")
    folder = tmp_path / "logs" / "toy_run" / "version_0"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["cost"]["steps"] == 4
    assert [one["step"] for one in summary["during"]] == [2, 4]
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["data"]["init_args"]["max_samples"] == 12, "what is shorter stays"
    assert settings["data"]["init_args"]["sources"]["init_args"]["sets"]["source"]["init_args"]["max_samples"] == 8
    assert len((folder / "predictions" / "after" / "source.jsonl").read_text().splitlines()) <= 8


def test_the_saved_adapter_gives_the_trained_logits(
    config: Path, tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllm_lit.adapters import Adapter
    from mllm_lit.backbones import Backbone
    from mllm_lit.data.collate import Collate
    from tests.toy import Toy

    run(monkeypatch, "--config", str(config), "--trainer.max_epochs", "1", "--model.adapter.lr", "0.01")
    loaded = Backbone(str(tiny_folder), dtype="float32").load()
    batch = Collate(loaded.processor)(Toy().rows(tmp_path / "data", "test"))
    with torch.no_grad():
        base = loaded.model(**batch.inputs).logits
        tuned = Adapter.load(loaded, tmp_path / "logs" / "toy_run" / "version_0" / "adapter").eval()
        after = tuned(**batch.inputs).logits
    assert not torch.allclose(base, after, atol=1e-3)
    rows = (
        (tmp_path / "logs" / "toy_run" / "version_0" / "predictions" / "after" / "toy.jsonl").read_text().splitlines()
    )
    labels = batch.labels[:, 1:]
    nll = torch.nn.functional.cross_entropy(after[:, :-1].transpose(1, 2), labels, reduction="none")
    per_token = nll.sum(1) / (labels != -100).sum(1)
    assert per_token.tolist() == pytest.approx([json.loads(row)["nll"] for row in rows], rel=1e-4)


@pytest.mark.parametrize(
    ("part", "file", "kind"), [("importance", "spider", "Spider"), ("objective", "kl_to_base", "KLToBase")]
)
def test_a_rule_or_an_objective_runs_by_one_word_and_resumes(
    part: str, file: str, kind: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--config", str(config), "--model.adapter", str(CONFIGS / "adapters" / "full.yaml")]
    words += [f"--model.{part}", str(CONFIGS / part.replace("objective", "objectives") / f"{file}.yaml")]
    run(monkeypatch, *words, "--trainer.max_epochs", "2")
    logs = tmp_path / "logs" / "toy_run"
    assert json.loads((logs / "version_0" / "summary.json").read_text())[part] == kind
    # The schedule's length is part of what is resumed, so the run is cut by its checkpoint interval instead.
    keep = ["--trainer.callbacks", "[{class_path: mllm_lit.callbacks.TrainableCheckpoint, "]
    keep[1] += "init_args: {every_n_train_steps: 5, keep: -1}}]"
    run(monkeypatch, *words, "--trainer.max_epochs", "2", *keep)
    cut = str(logs / "version_1" / "checkpoints" / "step=5.ckpt")
    run(monkeypatch, *words, "--trainer.max_epochs", "2", "--ckpt_path", cut)
    states = [
        torch.load(logs / f"version_{i}" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for i in (0, 2)
    ]
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name


@pytest.mark.parametrize("command", ["test", "validate"])
def test_scores_are_printed_without_training(
    command: str, config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, command, "--config", str(config))
    printed = capsys.readouterr().out
    assert re.search(r"^ *toy +accuracy +\d+ +[\d.]+ +[\d.]+ *$", printed, flags=re.MULTILINE)
    assert re.search(r"^ *source +accuracy +\d+ +[\d.]+ +[\d.]+ *$", printed, flags=re.MULTILINE)
    assert "DataLoader" not in printed, "Lightning's table"


def test_a_run_is_scored_again_in_its_own_folder(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its settings and newest checkpoint; fit goes on there."""
    run(monkeypatch, "--config", str(config), "--trainer.max_steps", "3")
    folder = tmp_path / "logs" / "toy_run" / "version_0"
    after = json.loads((folder / "summary.json").read_text())["scores"]["after"]
    capsys.readouterr()
    run(monkeypatch, "test", "--run", str(folder))
    place = folder / "predictions" / "test"
    assert f"Answers and scores: {place}" in capsys.readouterr().out
    assert json.loads((place / "scores.json").read_text()) == after
    run(monkeypatch, "predict", f"--run={folder}")
    assert json.loads((folder / "predictions" / "predict" / "scores.json").read_text())["toy"] == after["toy"]
    run(monkeypatch, "--run", str(folder), "--trainer.max_steps", "4")
    assert json.loads((folder / "summary.json").read_text())["cost"]["steps"] == 4
    assert [one.name for one in folder.parent.iterdir()] == ["version_0"]
    with pytest.raises(UsageError, match=f"--run {folder.parent}: there is no config.yaml in it"):
        run(monkeypatch, "test", "--run", str(folder.parent))


def test_the_bars_say_what_they_are_and_end_above_the_table(
    config: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--config", str(config), "--trainer.max_steps", "3", "--trainer.val_check_interval", "2")
    told = capfd.readouterr().err
    for one in ("before training · toy: 0/", "step 2 · toy: 0/", "after training · toy: 0/", "training: 3/3 steps"):
        assert one in told, one
    # In a file: nothing is written over.
    for one in ("DataLoader", "Testing", "Validation", "Epoch", "Trainer.fit", "\x1b[A"):
        assert one not in told, one
    assert "left" not in told.rpartition("training: 3/3 steps")[2]


def test_a_run_that_logs_nothing(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes 0 for never."""
    run(monkeypatch, "--config", str(config), "--trainer.max_steps", "1", "--trainer.log_every_n_steps", "0")
    assert (tmp_path / "logs" / "toy_run" / "version_0" / "summary.json").is_file()


def test_another_bar_takes_the_place_of_ours(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning takes one."""
    words = ["--trainer.callbacks", "lightning.pytorch.callbacks.TQDMProgressBar", "--trainer.max_steps", "1"]
    bar = build(config, words).trainer.progress_bar_callback
    assert type(bar).__name__ == "TQDMProgressBar"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.adaptor", "x"], "adaptor"),
        (["--model.adapter.rnak", "4"], "rnak"),
        (["--data.root", "/nowhere/at/all"], "/nowhere/at/all"),
        (["--data.root", "/nowhere/at/all"], "Expected in it"),
    ],
)
def test_a_wrong_word_or_path_is_named(
    config: Path, words: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((SystemExit, Exception)) as error:
        run(monkeypatch, "--config", str(config), *words)
    assert message in str(error.value) + capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.adapter.lr", "1", "--model.adapter", "a.yaml"], "--model.adapter.lr stands before --model.adapter,"),
        (["--trainer.max_epochs=1", "--trainer=b.yaml"], "Put --trainer.max_epochs behind --trainer."),
    ],
)
def test_a_setting_that_a_later_word_replaces_is_refused(
    config: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    with pytest.raises(MisconfigurationException, match=re.escape(message)):
        run(monkeypatch, "--config", str(config), *words)
    with pytest.raises(MisconfigurationException, match="--model.adapter.lr stands before --config"):
        run(monkeypatch, "--model.adapter.lr", "1", "--config", str(config))


def test_a_missing_folder_is_answered_in_words(config: Path) -> None:
    command = [sys.executable, str(REPOSITORY / "tools" / "fit.py"), "--config", str(config), "--data.root", "/nowhere"]
    found = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MLLM_LIT_TRACEBACK": ""}
    done = subprocess.run(command, cwd=REPOSITORY, env=found, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "there is no folder '/nowhere'" in done.stderr
    assert "Expected in it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_directory_that_exists_is_refused(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mllm_lit.run_directory import RunDirectoryError

    taken = tmp_path / "logs" / "toy_run" / "mine"
    taken.mkdir(parents=True)
    (taken / "summary.json").write_text("{}")
    with pytest.raises(RunDirectoryError, match="exists and is not empty"):
        run(monkeypatch, "--config", str(config), "--version", "mine")


def test_a_truncated_picture_is_found_before_the_first_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllm_lit.tasks.base import DatasetError
    from tests.toy import Toy

    Toy().rows(tmp_path / "data", "train")
    broken = tmp_path / "data" / "train-6.png"
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(DatasetError, match=r"train-6\.png"):
        run(monkeypatch, "--config", str(config))
    assert not list((tmp_path / "logs").rglob("*.ckpt"))


def test_a_run_and_a_backbone_are_scored_by_the_tool(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scores of a finished run again; of its backbone, those from before training."""
    import runpy

    def score(*words: str) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", ["evaluate.py", *words])
        runpy.run_path(str(REPOSITORY / "tools" / "evaluate.py"), run_name="__main__")
        scores: dict[str, Any] = json.loads((tmp_path / "scored" / "scores.json").read_text())
        return scores

    run(monkeypatch, "--config", str(config), "--trainer.max_steps", "3")
    folder = tmp_path / "logs" / "toy_run" / "version_0"
    ran = json.loads((folder / "summary.json").read_text())["scores"]
    out = ["--out", str(tmp_path / "scored"), "--trust", "tests"]
    again = score("--run", str(folder), *out)
    assert again.keys() == ran["after"].keys()
    for name, scores in ran["after"].items():
        assert again[name] == pytest.approx(scores, rel=1e-5)
    assert (tmp_path / "scored" / "toy.jsonl").read_text().count("\n") == 7
    assert re.search(r"^ *toy +accuracy +7 ", capsys.readouterr().out, flags=re.MULTILINE)
    settings = yaml.safe_load(config.read_text())
    file = tmp_path / "data.yaml"
    file.write_text(yaml.safe_dump(settings["data"]))
    backbone = settings["model"]["backbone"]["init_args"]["path"]
    plain = score("--backbone", backbone, "--data", str(file), "--dtype", "float32", *out)
    for name, scores in ran["before"].items():
        assert plain[name] == pytest.approx(scores, rel=1e-5)
