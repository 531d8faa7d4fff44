"""Importance rules in a run: every configuration by one word, resumed to the bit, logged block by block, refused."""

import json
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from torch import nn

from mllm_lit.callbacks.trajectory import trajectory
from mllm_lit.importance import EWC, L2SP, LoRASculpt, MagnitudeMask, ModelDowser, RuleError, Spider
from mllm_lit.importance.callback import refuse_strategy, wanted_rows
from mllm_lit.importance.log import combined
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow

CONFIGS = REPOSITORY / "configs"
RULES = sorted((CONFIGS / "importance").glob("*.yaml"), key=lambda path: path.stem)
SMALL = {
    "child_tuning_d": ["--model.importance.batches", "3"],
    "ewc": ["--model.importance.rows", "3"],
    "ewc_generated": ["--model.importance.rows", "2"],
    "dowser": ["--model.importance.prompts", "3", "--model.importance.probes", "2", "--model.importance.batch", "2"]
    + ["--model.importance.length", "12"],
    "lora_sculpt": ["--model.importance.prune_at", "3", "--model.adapter", str(CONFIGS / "adapters" / "lora.yaml")],
}
"""What a run of four steps on 22 rows needs beside its configuration."""


@pytest.fixture
def config(tiny_folder: Path, tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    source = {"task": {"class_path": "tests.toy.ToySource"}, "root": str(data)}
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(tiny_folder)}},
            "adapter": str(CONFIGS / "adapters" / "last_blocks.yaml"),
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "tests.toy.Toy"},
                "root": str(data),
                "sources": {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {"source": source}}},
                "batch_size": 11,
                "max_eval_samples": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 2,
            "precision": "32-true",  # to the bit on every CPU
            "num_sanity_val_steps": 0,
            "limit_val_batches": 0,
            "gradient_clip_val": 1.0,
            "enable_progress_bar": False,
            "callbacks": [
                {
                    "class_path": "mllm_lit.callbacks.TrainableCheckpoint",
                    "init_args": {"every_n_train_steps": 3, "keep": -1},
                }
            ],
        },
        "output": str(tmp_path / "logs"),
    }
    path = tmp_path / "toy_run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def run(monkeypatch: pytest.MonkeyPatch, config: Path, *words: str) -> Path:
    """Run the command line in this process and return the run directory."""
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    main(["--config", str(config), *words])
    logs = config.parent / "logs" / "toy_run"
    return max(logs.iterdir(), key=lambda folder: int(folder.name.removeprefix("version_")))


def weights(folder: Path, file: str = "last.ckpt") -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoints" / file, weights_only=True)["state_dict"]


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES, ids=lambda path: path.stem)
def test_every_configuration_runs_and_resumes_to_the_bit(
    rule: Path, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four steps in two epochs, and again from the checkpoint in the middle of the second."""
    words = ["--model.importance", str(rule), *SMALL.get(rule.stem, [])]
    first = run(monkeypatch, config, *words)
    summary = json.loads((first / "summary.json").read_text())
    assert summary["importance"] == yaml.safe_load(rule.read_text())["class_path"].rpartition(".")[2]
    assert summary["cost"]["steps"] == 4
    again = run(monkeypatch, config, *words, "--ckpt_path", str(first / "checkpoints" / "step=3.ckpt"))
    assert again != first
    theirs, ours = weights(first), weights(again)
    assert any(not torch.equal(value, weights(first, "step=3.ckpt")[name]) for name, value in theirs.items())
    for name, value in theirs.items():
        assert torch.equal(value, ours[name]), name


@pytest.mark.parametrize("rule", ["dowser", "ewc_generated"])
def test_a_backbone_in_bf16_is_probed_as_it_trains(rule: str, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Last blocks in fp32 on a base in bf16; the frozen vision encoder stays in eval mode."""
    modes: list[dict[str, bool]] = []
    kind = {"dowser": ModelDowser, "ewc_generated": EWC}[rule]
    original = kind.prepare

    def prepare(self: Any, gradients: Any = None, model: Any = None) -> None:
        for step in (lambda: None, lambda: original(self, gradients, model)):
            step()
            modes.append({name: module.training for name, module in model.named_modules()})

    monkeypatch.setattr(kind, "prepare", prepare)
    words = ["--model.importance", str(CONFIGS / "importance" / f"{rule}.yaml"), *SMALL[rule]]
    folder = run(monkeypatch, config, *words, "--model.backbone.dtype", "bfloat16", "--trainer.precision", "bf16-mixed")
    assert json.loads((folder / "summary.json").read_text())["cost"]["steps"] == 4
    assert modes[0] == modes[1]
    assert len(set(modes[0].values())) == 2


@pytest.mark.parametrize("gradient", ["clipped", "unclipped"])
def test_a_step_that_the_scaler_skips_does_not_count(
    gradient: str, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first of four overflows: its gradient must not enter SPIDER's sum."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**60, backoff_factor=2.0**-52)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    half = "{class_path: lightning.pytorch.plugins.MixedPrecision, init_args: {precision: 16-mixed, device: cpu}}"
    words = ["--model.importance", str(CONFIGS / "importance" / "spider.yaml"), "--trainer.plugins", half]
    words += ["--trainer.precision", "null"]
    folder = run(monkeypatch, config, *words, "--model.importance.gradient", gradient)
    stored = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    state = next(value for key, value in stored["callbacks"].items() if key.startswith("ImportanceCallback"))
    assert state["steps"] == 3
    for name, total in state["buffers"]["gradients"].items():
        assert torch.isfinite(total).all(), name
        assert torch.isfinite(stored["state_dict"][f"net.{name}"]).all(), name
    assert max(float(total.abs().max()) for total in state["buffers"]["gradients"].values()) < 100  # not scaled


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rules_see_the_gradient_of_the_mean_loss(
    accumulate: int, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a loss term adds reaches the optimizer at its own strength, whatever the number of tokens in the step."""
    seen: list[float] = []

    def before(rule: L2SP) -> None:
        for name, parameter in rule.parameters.items():
            pull = rule.strength * (parameter.detach() - rule.reference[name].float())  # type: ignore[index]
            assert parameter.grad is not None
            rule.expected[name] = parameter.grad + pull  # type: ignore[attr-defined]
        original(rule)

    def after(rule: L2SP) -> None:
        for name, parameter in rule.parameters.items():
            torch.testing.assert_close(parameter.grad, rule.expected[name])  # type: ignore[attr-defined]
        seen.append(float(rule.penalty()))

    original = L2SP.before_step
    monkeypatch.setattr(L2SP, "expected", {}, raising=False)
    monkeypatch.setattr(L2SP, "before_step", before)
    monkeypatch.setattr(L2SP, "after_step", after)
    words = ["--model.importance", str(CONFIGS / "importance" / "l2sp.yaml"), "--model.adapter.lr", "0.01"]
    words += ["--model.importance.strength", "5", "--trainer.gradient_clip_val", "null"]
    run(monkeypatch, config, *words, "--trainer.accumulate_grad_batches", str(accumulate))
    assert len(seen) == 4 // accumulate
    assert seen[-1] > 0


def test_figures_by_block_and_role(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = "[{class_path: mllm_lit.callbacks.TrainableCheckpoint}]"
    words = [
        "--model.importance_log_every",
        "2",
        "--model.importance",
        str(CONFIGS / "importance" / "spider.yaml"),
        "--trainer.callbacks",
        every,
    ]
    folder = run(monkeypatch, config, *words)
    events = EventAccumulator(str(folder), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    for part in ("llm", "connector", "block_00", "block_01"):
        for figure in ("selected", "mask", "overlap", "distance", "relative_distance"):
            steps = [event.step for event in events.Scalars(f"importance/{part}/{figure}")]
            assert steps == ([4] if figure == "overlap" else [2, 4])
        mask = events.Histograms(f"importance_mask/{part}")[-1].histogram_value
        selected, mean = (events.Scalars(f"importance/{part}/{key}")[-1].value for key in ("selected", "mask"))
        assert mask.num == sum(mask.bucket)
        assert 1 - mask.bucket[0] / mask.num == pytest.approx(selected, abs=1e-6)  # the lowest mask above 0 is near 0.8
        assert mask.sum / mask.num == pytest.approx(mean, abs=0.02)
    assert {f"importance/{key}" for key in ("selected", "mask", "overlap", "distance")} <= set(tags["images"])
    assert {"importance/llm/distance", "importance/connector/overlap"} <= set(tags["histograms"])
    assert {"forgetting/target_against_sources"} <= set(tags["images"])


def test_the_parts_add_up_to_the_whole() -> None:
    figures = {"a": {"selected": 0.5, "mask": 0.4, "overlap": 1.0, "distance": 3.0, "norm": 6.0}}
    figures["b"] = {"selected": 0.0, "mask": 0.0, "overlap": 0.5, "distance": 4.0, "norm": 8.0}
    whole = combined(figures, {"a": 10, "b": 30})
    expected = {"selected": 0.125, "mask": 0.1, "overlap": 0.625, "distance": 5.0, "relative_distance": 0.5}
    assert whole == pytest.approx(expected)


def test_rows_come_from_where_the_rule_says() -> None:
    from tests.toy import ROWS, Toy

    class Train(Toy):
        def rows(self, root: Path, split: str) -> list[Any]:
            return [(split, str(root), i) for i in range(ROWS[split])]

    sources = {name: SimpleNamespace(task=Train(), root=name, split="test") for name in ("one", "two")}
    data: Any = SimpleNamespace(
        train_rows=["target"] * 5, named=lambda names, _: {n: sources[n] for n in names or sources}
    )
    assert wanted_rows(MagnitudeMask(), data) == ["target"] * 5
    rows: Any = wanted_rows(EWC(), data)
    assert [root for _, root, _ in rows] == ["one", "two"] * ROWS["train"]  # in turns, so that both weigh the same
    assert {split for split, _, _ in rows} == {"train"}
    assert sorted(i for _, root, i in rows if root == "two") == list(range(ROWS["train"]))
    assert rows == wanted_rows(EWC(), data)
    rows = wanted_rows(EWC(rows_from=["two"]), data)
    assert {root for _, root, _ in rows} == {"two"}
    sources.clear()
    with pytest.raises(RuleError, match="fisher: generated"):
        wanted_rows(EWC(), data)


@pytest.mark.parametrize("kind", [DeepSpeedStrategy, FSDPStrategy])
def test_strategies_that_flatten_parameters_are_refused(kind: type[Any]) -> None:
    with pytest.raises(RuleError, match=f"{kind.__name__}, which keeps flat pieces.*FSDP2"):
        refuse_strategy(kind.__new__(kind))


def _parameter(**marks: Any) -> nn.Parameter:
    parameter = nn.Parameter(torch.ones(4))
    for name, value in marks.items():
        setattr(parameter, name, value)
    return parameter


def test_tensors_that_cannot_be_addressed_are_refused() -> None:
    for mark in ("ds_id", "_fsdp_flattened"):
        flat = _parameter(**{mark: 1})
        with pytest.raises(RuleError, match="loses track of single tensors"):
            Spider().attach(torch.optim.SGD([flat], lr=1), [("w", flat)])
    # DeepSpeed's own optimizer holds flat buffers in place of the model's parameters.
    with pytest.raises(RuleError, match="DeepSpeed's does not hold them"):
        Spider().attach(torch.optim.SGD([_parameter()], lr=1), [("w", _parameter())])


def test_quantised_weights_are_refused() -> None:
    packed = nn.Parameter(torch.zeros(4, dtype=torch.uint8), requires_grad=False)
    packed.requires_grad = False
    model = nn.Module()
    model.base_layer = nn.Module()
    model.base_layer.weight = packed
    model.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
    model.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})
    whole = nn.ModuleDict({"q": model})
    optimizer = torch.optim.SGD([p for p in whole.parameters() if p.requires_grad], lr=1)
    with pytest.raises(RuleError, match="is quantised"):
        LoRASculpt().attach(optimizer, whole.named_parameters())
    Spider().attach(optimizer, whole.named_parameters())  # beside a quantised base, an adapter's own tensors are fine


def test_an_adapter_with_nothing_to_train_is_refused_before_the_first_step(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mllm_lit.adapters.base import AdapterError

    words = ["--model.importance", str(CONFIGS / "importance" / "spider.yaml"), "--model.adapter.blocks", "0"]
    with pytest.raises(AdapterError, match="leaves nothing to train"):
        run(monkeypatch, config, *words, "--model.adapter.connector", "frozen")


def test_reference_of_tensors_that_the_adapter_created(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The user is told, and θ0 is what they held when attached: all of B is selected, A is pulled back."""
    lora = ["--model.adapter", str(CONFIGS / "adapters" / "lora.yaml")]
    with caplog.at_level("INFO"):
        run(monkeypatch, config, *lora, "--model.importance", str(CONFIGS / "importance" / "spider.yaml"))
    assert "28 of the 32 trainable tensors were created by LoRA. Their θ0 is what they held" in caplog.text
    dowser = ["--model.importance", str(CONFIGS / "importance" / "dowser.yaml"), *SMALL["dowser"]]
    with pytest.raises(RuleError, match="fresh LoRA B"):
        run(monkeypatch, config, *lora, *dowser, "--model.adapter.weight_decay", "0")


def test_the_picture_of_forgetting() -> None:
    def scores(target: float, *sources: float) -> dict[str, dict[str, float]]:
        return {"t": {"acc": target}, **{name: {"acc": s, "nll": 9.0} for name, s in zip("ab", sources, strict=True)}}

    series = trajectory(("t", "acc"), [("a", "acc"), ("b", "acc")], scores(10, 80, 60), [(5, scores(50, 70, 40))], None)
    assert series["a"].points == [(70, 50, "")]
    assert series["mean"].points == [(55, 50, "5")]
    assert series["mean, test splits"].points == [(70, 10, "before")]
    assert not series["mean, test splits"].joined
    many = trajectory(
        ("t", "acc"),
        [("a", "acc")],
        None,
        [(5 * i, {"t": {"acc": i}, "a": {"acc": 2 * i}}) for i in range(1, 101)],
        None,
    )
    labels = [label for *_, label in many["mean"].points if label]
    assert len(many["mean"].points) == 100
    assert 5 < len(labels) <= 12, "of many steps some are named"
    assert labels[-1] == "500", "the last one among them"
