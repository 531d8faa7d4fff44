"""The named experiments with SPIDER run from their configuration as it stands, cut to a few rows and steps."""

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import REPOSITORY
from tests.tasks import releases

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs"


def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str, *words: str) -> dict:
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    few = ["--trainer.max_steps", "2", "--trainer.limit_test_batches", "1", "--trainer.limit_val_batches", "0"]
    few += ["--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--data.batch_size", "2"]
    few += ["--output", str(tmp_path / "logs")]
    main(["--config", str(CONFIGS / f"{name}.yaml"), *few, *words])
    folder = tmp_path / "logs" / name / "version_0"
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return json.loads((folder / "summary.json").read_text()) | {"trained": list(stored["state_dict"])}


def test_scienceqa_spider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    summary = run(monkeypatch, tmp_path, "scienceqa_spider", "--data.max_samples", "4")
    assert (summary["importance"], summary["adapter"], summary["target"]["name"]) == ("Spider", "Full", "scienceqa")
    blocks = {name.split("layers.")[1].split(".")[0] for name in summary["trained"] if "layers." in name}
    assert blocks == {"4", "5"}
    assert sum("multi_modal_projector" in name for name in summary["trained"]) == 4
    assert len(summary["trained"]) == 4 + 2 * 9
    assert set(summary["sources"]) == {"captions", "vqa", "gqa"}


def test_flickr30k_spider(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_folder: Path) -> None:
    """On releases of a few rows and the tiny model; bf16 is slow on a CPU."""
    sets = ("flickr30k", "okvqa", "ocrvqa", "gqa", "textvqa")
    for name in sets:
        getattr(releases, name)(tmp_path / "data" / name)
    monkeypatch.chdir(tmp_path)
    words = ["--model.backbone.path", str(tiny_folder), "--model.backbone.aspect", "null"]
    words += ["--data.val_split", "test", "--trainer.precision", "32-true"]
    summary = run(monkeypatch, tmp_path, "flickr30k_spider", *words)
    assert summary["target"]["metric"] == "cider"
    assert set(summary["sources"]) == set(sets[1:])
    assert summary["tradeoff"].keys() == {"A_S", "A_S_normalised", "A_T", "H", "O"}
