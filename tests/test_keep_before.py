"""Scores before training are kept for the next run, and taken only where it would have found the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from mllm_lit.backbones import VisionCache
from mllm_lit.module import MLLMModule
from tests.test_run import CONFIGS, config, run

pytestmark = pytest.mark.slow

__all__ = ["config"]  # the fixture


@pytest.fixture
def phases(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The evaluations that were really run."""
    seen: list[str] = []
    evaluate = MLLMModule.evaluate

    def spy(self: MLLMModule, evaluator: Any, phase: str, limit: Any = None) -> Any:
        seen.append(phase)
        return evaluate(self, evaluator, phase, limit)

    monkeypatch.setattr(MLLMModule, "evaluate", spy)
    return seen


def test_the_second_run_takes_the_scores_of_the_first(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    words = ["--config", str(config), "--keep_before", str(tmp_path / "kept"), "--trainer.max_steps", "2"]
    encoded: list[int] = []
    made = VisionCache._made

    def count(self: VisionCache, encode: Any, places: list[int]) -> Any:
        encoded[-1] += len(places)
        return made(self, encode, places)

    monkeypatch.setattr(VisionCache, "_made", count)
    for own in (words, words, [*words[:2], *words[4:]]):
        encoded.append(0)
        run(monkeypatch, *own)
    assert phases == ["before", "after", "after", "before", "after"]
    folders = [tmp_path / "logs" / "toy_run" / f"version_{i}" for i in range(3)]
    summaries = [json.loads((folder / "summary.json").read_text())["scores"] for folder in folders]
    assert summaries[0] == summaries[1] == summaries[2]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Vision features")]
    assert [str(tmp_path / "kept" / "vision") in line for line in told] == [True, True, False]
    assert encoded[0] > encoded[1] == 0, "vision features are kept, too"
    weights = [torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False) for folder in folders]
    for name, tensor in weights[0]["state_dict"].items():
        assert torch.equal(tensor, weights[1]["state_dict"][name]), name
    for name in ("toy", "source"):
        texts = [(folder / "predictions" / "before" / f"{name}.jsonl").read_text() for folder in folders]
        assert len(texts[0].splitlines()) == 7
        assert texts[0] == texts[1]
    events = [EventAccumulator(str(folder)).Reload() for folder in folders[:2]]
    assert events[0].Tags()["images"] == events[1].Tags()["images"]
    pictures = [event.Images("toy/before")[0].encoded_image_string for event in events]
    assert pictures[0] == pictures[1]
    shown = [event.Scalars("test/toy/nll")[0] for event in events]
    assert [entry.step for entry in shown] == [0, 0]
    assert shown[0].value == shown[1].value


def test_kept_scores_serve_only_the_same_backbone_data_and_precision(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[str]
) -> None:
    words = ["--config", str(config), "--keep_before", str(tmp_path / "kept"), "--trainer.max_steps", "1"]

    def measured(*more: str) -> bool:
        del phases[:]
        run(monkeypatch, *words, *more)
        return "before" in phases

    assert measured()
    assert not measured("--model.adapter.rank", "2")  # the backbone is the same
    assert not measured("--model.adapter", str(CONFIGS / "adapters" / "last_blocks.yaml"))
    assert not measured("--seed_everything", "7")  # all rows are scored, so their draw is the same
    assert measured("--trainer.precision", "bf16-mixed", "--model.backbone.dtype", "float32")
    assert measured("--trainer.precision", "bf16-mixed", "--model.backbone.dtype", "bfloat16")
    assert measured("--model.backbone.aspect", "pad")
    assert measured("--model.max_new_tokens", "2")
    assert measured("--data.eval_tokens", "300")
    assert measured("--data.max_eval_samples", "5")
    settings = yaml.safe_load(config.read_text())
    folder = Path(settings["data"]["init_args"]["root"])
    Image.new("RGB", (40, 32), "white").save(folder / "test-3.png")
    assert measured()
    backbone = Path(settings["model"]["backbone"]["init_args"]["path"])
    (copy := tmp_path / "other").mkdir()
    for file in backbone.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    assert not measured("--model.backbone.path", str(copy))
    (weights,) = copy.glob("*.safetensors")
    from safetensors.torch import load_file, save_file

    save_file({k: v * 1.01 for k, v in load_file(weights).items()}, weights, {"format": "pt"})
    assert measured("--model.backbone.path", str(copy))


def test_an_adapter_that_changes_the_backbone_is_measured_each_time(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: list[str]
) -> None:
    words = ["--config", str(config), "--keep_before", str(tmp_path / "kept"), "--trainer.max_steps", "1"]
    for _ in range(2):
        run(monkeypatch, *words, "--model.adapter.init", "pissa", "--model.adapter.rank", "4")
    assert phases == ["before", "after"] * 2
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["vision"]


@pytest.mark.parametrize("words", [["--data.task.score", "exact"], ["--trainer.limit_test_batches", "1"]])
def test_other_scorers_and_other_parts_of_a_set_have_other_scores(
    words: list[str], tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, phases: list[str]
) -> None:
    """A scorer's arguments and the number of batches enter what is kept, as the whole and its part differ."""
    (tmp_path / "data").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "data" / "a.png")
    turns = [{"from": "human", "value": "<image>what colour?"}, {"from": "gpt", "value": "Red"}]
    rows = [{"id": str(i), "image": "a.png", "conversations": turns} for i in range(4)]
    for split in ("train", "val", "test"):
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(rows))
    settings = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": {"class_path": "mllm_lit.adapters.LoRA", "init_args": {"rank": 2}},
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "mllm_lit.tasks.Conversations", "init_args": {"score": "lower"}},
                "root": str(tmp_path / "data"), "batch_size": 2, "eval_tokens": 1,
            },
        },
        "trainer": {
            "accelerator": "cpu", "max_steps": 1, "limit_val_batches": 0, "enable_progress_bar": False,
            "enable_model_summary": False, "num_sanity_val_steps": 0,
        },
        "output": str(tmp_path / "logs"),
    }  # fmt: skip
    path = tmp_path / "conversations.yaml"
    path.write_text(yaml.safe_dump(settings))
    common = ["--config", str(path), "--keep_before", str(tmp_path / "kept")]
    run(monkeypatch, *common)
    run(monkeypatch, *common, *words)
    run(monkeypatch, *common, *words)
    assert phases == ["before", "after", "before", "after", "after"]
