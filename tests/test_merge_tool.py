"""tools/merge.py on finished runs of the tiny model: end points, files, refusals."""

import json
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForImageTextToText

from mllm_lit.backbones import BackboneError
from mllm_lit.merging import MergeError
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

ADAPTERS = REPOSITORY / "configs" / "adapters"


@pytest.fixture(scope="module")
def runs(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Finished runs by adapter."""
    from mllm_lit.cli import main

    root = tmp_path_factory.mktemp("merge")
    (root / "data").mkdir()
    source = {"task": {"class_path": "tests.toy.ToySource"}, "root": str(root / "data")}
    folders = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "42")
        for adapter in ("last_blocks", "lora", "prefix"):
            settings: dict[str, Any] = {
                "model": {
                    "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
                    "adapter": str(ADAPTERS / f"{adapter}.yaml"),
                },
                "data": {
                    "class_path": "mllm_lit.data.VQADataModule",
                    "init_args": {
                        "task": {"class_path": "tests.toy.Toy"},
                        "root": str(root / "data"),
                        "sources": {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {"source": source}}},
                        "batch_size": 11,
                    },
                },
                "trainer": {
                    "accelerator": "cpu",
                    "max_steps": 3,
                    "limit_val_batches": 0,
                    "enable_progress_bar": False,
                    "callbacks": [{"class_path": "mllm_lit.callbacks.TrainableCheckpoint"}],
                },
                "output": str(root / "logs"),
            }
            config = root / f"{adapter}.yaml"
            config.write_text(yaml.safe_dump(settings))
            patch.setattr(sys, "argv", ["fit.py"])
            # Fast enough for three steps to show.
            main(["--config", str(config), "--model.adapter.lr", "0.01", "--model.adapter.connector_lr", "0.01"])
            folders[adapter] = root / "logs" / adapter / "version_0"
    return folders


def merge(monkeypatch: pytest.MonkeyPatch, run: Path, method: str, *words: str) -> dict[str, Any]:
    monkeypatch.setattr(sys, "argv", ["merge.py", str(run), "--method", method, "--trust", "tests", *words])
    runpy.run_path(str(REPOSITORY / "tools" / "merge.py"))["main"]()
    result: dict[str, Any] = json.loads((run / "merges" / method / "merge.json").read_text())
    return result


def scores(run: Path, phase: str) -> dict[str, dict[str, float]]:
    result: dict[str, dict[str, float]] = json.loads((run / "summary.json").read_text())["scores"][phase]
    return result


def assert_same(ours: dict[str, dict[str, float]], theirs: dict[str, dict[str, float]]) -> None:
    assert ours.keys() == theirs.keys()
    for name, row in theirs.items():
        assert ours[name] == pytest.approx(row, rel=1e-4), name


@pytest.mark.parametrize("adapter", ["last_blocks", "lora"])
def test_the_sweep_runs_from_before_to_after(
    runs: dict[str, Path], adapter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs[adapter]
    points = merge(monkeypatch, run, "wise_ft")["points"]
    assert [row["label"] for row in points[2:]] == [f"alpha {i / 10:.2f}" for i in range(11)]
    before, after = scores(run, "before"), scores(run, "after")
    assert before["toy"]["nll"] > after["toy"]["nll"] + 0.1
    assert_same(points[2]["scores"], before)
    assert_same(points[-1]["scores"], after)
    assert before["toy"]["nll"] > points[7]["scores"]["toy"]["nll"]
    assert points[-1]["tradeoff"].keys() == {"A_S", "A_T", "H", "O"}
    lines = (run / "merges" / "wise_ft" / "predictions" / "alpha-0.50" / "source.jsonl").read_text().splitlines()
    assert len(lines) == 7


METHODS = {
    "none": "{}",
    "dare": "{drop: 0.0}",
    "ties": "{keep: 1.0}",
    "grafting": "{keep: 1.0, steps: 3}",
    "model_tailor": "{keep: 1.0}",
}


@pytest.mark.parametrize(("method", "options"), METHODS.items(), ids=METHODS.keys())
def test_every_method_at_its_end_is_the_run_itself(
    runs: dict[str, Path], method: str, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs["last_blocks"]
    result = merge(monkeypatch, run, method, "--options", options, "--rows", "22")
    assert [row["label"] for row in result["points"]] == ["before training", "after training", method]
    assert_same(result["points"][-1]["scores"], scores(run, "after"))


def test_calibration_changes_what_is_kept(runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """With data, Model Tailor compensates: another result than by the size of the change alone."""
    run, words = runs["last_blocks"], ("--rows", "22", "--data.max_eval_samples", "4")
    plain = merge(monkeypatch, run, "ties", "--options", "{keep: 0.1, scope: tensor}", *words)["points"]
    tailored = merge(monkeypatch, run, "model_tailor", "--options", "{keep: 0.1, omega: 1.0}", *words)["points"]
    assert [row["label"] for row in plain] == ["ties"]  # overridden, so the run's own scores are of other rows
    assert plain[0]["scores"]["toy"]["nll"] != pytest.approx(tailored[0]["scores"]["toy"]["nll"], rel=1e-5)


def test_an_adapter_is_merged_into_a_folder_for_plain_transformers(
    runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllm_lit.adapters import Adapter
    from mllm_lit.backbones import Backbone
    from mllm_lit.data.collate import Collate
    from tests.toy import Toy

    run, out = runs["lora"], tmp_path / "merged"
    result = merge(monkeypatch, run, "adapter", "--out", str(out))
    assert result["max_difference"] < 1e-4 * result["logits_max"]
    plain = AutoModelForImageTextToText.from_pretrained(out).eval()
    config = yaml.safe_load((run / "config.yaml").read_text())
    loaded = Backbone(config["model"]["backbone"]["init_args"]["path"]).load()
    batch = Collate(loaded.processor)(Toy().rows(Path(config["data"]["init_args"]["root"]), "test"))
    with torch.no_grad():
        base = loaded.model(**batch.inputs).logits
        beside = Adapter.load(loaded, run / "adapter").eval()(**batch.inputs).logits
        merged = plain(**batch.inputs).logits
    torch.testing.assert_close(merged, beside, rtol=1e-4, atol=1e-4)
    assert (base - merged).abs().max() > 0.01


def test_refusals(runs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BackboneError, match=r"config\.yaml and adapter not found"):
        merge(monkeypatch, tmp_path, "dare")
    with pytest.raises(MergeError, match="PREFIX_TUNING puts virtual tokens"):
        merge(monkeypatch, runs["prefix"], "wise_ft")
    with pytest.raises(MergeError, match="ask for fewer"):
        merge(monkeypatch, runs["last_blocks"], "model_tailor")
    with pytest.raises(MergeError, match="give the sweep an alpha"):
        merge(monkeypatch, runs["last_blocks"], "wise_ft", "--out", str(tmp_path / "out"))
    with pytest.raises(MergeError, match="say where"):
        merge(monkeypatch, runs["lora"], "adapter")


def test_a_bottleneck_cannot_be_merged(tiny_folder: Path, tmp_path: Path) -> None:
    from mllm_lit.adapters import Bottleneck
    from mllm_lit.backbones import Backbone
    from mllm_lit.merging.finished import changed_weights

    loaded = Backbone(str(tiny_folder)).load()
    adapter = Bottleneck(size=2)
    adapter.save(adapter.attach(loaded), tmp_path)
    with pytest.raises(MergeError, match="not linear"):
        changed_weights(Backbone(str(tiny_folder)).load(), tmp_path)
