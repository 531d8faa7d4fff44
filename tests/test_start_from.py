"""Runs that start from other runs: what they begin with, what they leave, how they resume, and what is refused."""

import json
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mllm_lit.adapters import Adapter, AdapterError, Full, LoRA, Prefix
from mllm_lit.backbones import Backbone
from mllm_lit.data.collate import Batch, Collate
from mllm_lit.errors import SettingError
from mllm_lit.importance import L2SP
from mllm_lit.importance.callback import say_what_reference_is
from mllm_lit.inference.export import export
from mllm_lit.inference.run import load_tuned
from mllm_lit.module import MLLMModule
from mllm_lit.start import find_start
from tests.conftest import REPOSITORY
from tests.toy import Toy

ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"class_path": "mllm_lit.adapters.LoRA", "init_args": {"rank": 4, "alpha": 8, "lr": 1e-2}},
    "full": {"class_path": "mllm_lit.adapters.Full", "init_args": {"blocks": 1, "lr": 1e-2, "connector_lr": 1e-2}},
    "connector": {"class_path": "mllm_lit.adapters.Full", "init_args": {"blocks": 0, "connector_lr": 1e-2}},
    "prefix": {"class_path": "mllm_lit.adapters.Prefix", "init_args": {"tokens": 3, "lr": 1e-2}},
    "bottleneck": {"class_path": "mllm_lit.adapters.Bottleneck", "init_args": {"size": 4, "lr": 1e-2}},
    "pissa": {"class_path": "mllm_lit.adapters.LoRA", "init_args": {"rank": 4, "init": "pissa", "lr": 1e-2}},
}


def fit(root: Path, name: str, backbone: Path, adapter: str, *words: str, **model: Any) -> Any:
    """A run in ``root/logs/toy/NAME`` by the command line; returns the finished command line."""
    from mllm_lit.cli import MLLMCLI

    (root / "data").mkdir(exist_ok=True)
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(backbone)}},
            "adapter": ADAPTERS[adapter],
            **model,
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "tests.toy.Toy"},
                "root": str(root / "data"),
                "batch_size": 4,
                "max_eval_samples": 3,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 6,
            "precision": "32-true",  # the same numbers on every CPU
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "gradient_clip_val": 1.0,
            "log_every_n_steps": 1,
            "callbacks": [
                {
                    "class_path": "mllm_lit.callbacks.TrainableCheckpoint",
                    "init_args": {"every_n_train_steps": 3, "keep": -1},
                }
            ],
        },
        "output": str(root / "logs"),
    }
    config = root / "toy.yaml"
    config.write_text(yaml.safe_dump(settings))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PL_GLOBAL_SEED", "42")
        cli = MLLMCLI(["--config", str(config), "--version", name, *words])
        cli.trainer.fit(cli.model, datamodule=cli.datamodule, ckpt_path=cli.config.ckpt_path)
        return cli


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


class Runs:
    """Finished runs of every adapter, by its name; each is made when it is first asked for."""

    def __init__(self, root: Path, backbone: Path) -> None:
        self.root, self.backbone = root, backbone

    def __truediv__(self, name: str) -> Path:
        folder = self.root / "logs" / "toy" / name
        if not folder.exists():
            fit(self.root, name, self.backbone, name)
        return folder


@pytest.fixture(scope="module")
def runs(root: Path, tiny_folder: Path) -> Runs:
    return Runs(root, tiny_folder)


@pytest.fixture
def batch(root: Path) -> Batch:
    from tests.tiny import tiny_processor

    (root / "data").mkdir(exist_ok=True)
    return Collate(tiny_processor())(Toy().rows(root / "data", "test"))


def logits(module: Any, batch: Batch) -> torch.Tensor:
    was = module.training
    module.eval()
    with torch.no_grad():
        out: torch.Tensor = module(**batch.inputs).logits.float()
    module.train(was)
    return out


def begun(tiny: Path, adapter: Adapter, run: Path, start: Any = "keep", **more: Any) -> MLLMModule:
    """A module whose model is at the start."""
    module = MLLMModule(Backbone(str(tiny), dtype="float32"), adapter, start_from=str(run), start=start, **more)
    module.configure_model()
    return module


def new(name: str, **options: Any) -> Adapter:
    kinds = {"mllm_lit.adapters.LoRA": LoRA, "mllm_lit.adapters.Full": Full, "mllm_lit.adapters.Prefix": Prefix}
    return kinds[ADAPTERS[name]["class_path"]](**{**ADAPTERS[name]["init_args"], **options})


# ---- what a run begins with ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora", "full", "connector", "prefix"])
def test_keep_begins_where_the_run_ended(runs: Runs, tiny_folder: Path, batch: Batch, name: str) -> None:
    finished = load_tuned("", runs / name)
    module = begun(tiny_folder, new(name, lr=1e-5, weight_decay=0.1), runs / name)
    ours, theirs = logits(module.net, batch), logits(finished.module, batch)
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, logits(Backbone(str(tiny_folder), dtype="float32").load().model, batch), atol=1e-3)
    assert all(p.dtype == torch.float32 for _, p in module.trainable())
    plain = MLLMModule(Backbone(str(tiny_folder), dtype="float32"), new(name))
    plain.configure_model()
    assert [n for n, _ in module.trainable()] == [n for n, _ in plain.trainable()]
    assert (module.starts_from_adapter, plain.starts_from_adapter) == (True, False)
    assert module.start_identity
    assert not plain.start_identity


@pytest.mark.parametrize("above", ["lora", "full", "connector"])
@pytest.mark.parametrize("name", ["lora", "full", "connector", "pissa"])
def test_merge_begins_where_the_run_ended(runs: Runs, tiny_folder: Path, batch: Batch, name: str, above: str) -> None:
    """Not bit for bit under LoRA: (W + BA)x and Wx + B(Ax) are sums in another order."""
    finished = load_tuned("", runs / name)
    module = begun(tiny_folder, new(above), runs / name, "merge")
    ours, theirs = logits(module.net, batch), logits(finished.module, batch)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    if name in ("full", "connector"):
        assert torch.equal(ours, theirs)
    assert module.loaded is not None
    assert module.loaded.identity != finished.loaded.identity
    assert not module.starts_from_adapter
    layers = [n for n, _ in module.net.named_modules() if "lora_A.default" in n]  # type: ignore[union-attr]
    assert bool(layers) == (above == "lora")
    if above == "lora":
        assert all(bool((p == 0).all()) for n, p in module.trainable() if "lora_B" in n), "a new one"


def test_merged_weights_keep_their_dtype_and_one_identity(runs: Runs, tiny_folder: Path) -> None:
    """The sum is rounded once, from fp32; what a folder is merged into is known by what it was made from."""
    identities = set()
    for dtype in ("float32", "bfloat16"):
        backbone = Backbone(str(tiny_folder), dtype=dtype)  # type: ignore[arg-type]
        module = MLLMModule(backbone, new("lora"), start_from=str(runs / "lora"), start="merge")
        module.configure_model()
        assert module.loaded is not None
        identities.add(module.loaded.identity)
        frozen = {n: p for n, p in module.net.named_parameters() if ".base_layer." in n}  # type: ignore[union-attr]
        assert {str(p.dtype) for p in frozen.values()} == {f"torch.{dtype}"}
        if dtype == "float32":
            exact = frozen
    for name, parameter in frozen.items():
        base = exact[name].bfloat16()  # of a backbone that was not rounded before the sum, hence a step at most
        assert torch.allclose(parameter.float(), base.float(), rtol=2**-6, atol=1e-4)
    assert len(identities) == 1


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_a_chain_of_three_is_opened_as_it_ended(runs: Runs, root: Path, tiny_folder: Path, batch: Batch) -> None:
    first = runs / "lora"
    words = ("--model.start_from", str(first), "--model.start", "merge")
    fit(root, "second", tiny_folder, "full", *words)
    second = root / "logs" / "toy" / "second"
    for name, adapter, start in (("kept", "full", "keep"), ("merged", "lora", "merge")):
        before = logits(begun(tiny_folder, new(adapter), second, start).net, batch)
        assert torch.allclose(before, logits(load_tuned("", second).module, batch), rtol=0, atol=1e-5)
        third = fit(root, name, tiny_folder, adapter, "--model.start_from", str(second), "--model.start", start)
        live = logits(third.model.net, batch)
        opened = load_tuned("", root / "logs" / "toy" / name)
        assert torch.equal(logits(opened.module, batch), live)
        assert not torch.allclose(live, logits(load_tuned("", second).module, batch), atol=1e-4), "it has trained"
        fourth = begun(tiny_folder, new(adapter), root / "logs" / "toy" / name)
        assert torch.equal(logits(fourth.net, batch), live)
        out = root / f"exported_{name}"
        change, _ = export(opened, out)
        assert change < 1e-5
        written = Backbone(str(out), dtype="float32").load().model
        assert torch.allclose(logits(written, batch), live, rtol=0, atol=1e-5)


@pytest.mark.parametrize("said", ["words", "file"])
def test_a_run_knows_its_start_from_anywhere(
    runs: Runs, root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch: Batch, said: str
) -> None:
    """As it was given it is relative to where the command was typed, also in a file of another folder."""
    moved = tmp_path / "start"
    shutil.copytree(runs / "lora", moved)
    monkeypatch.chdir(tmp_path)
    if said == "words":
        fit(root, said, tiny_folder, "lora", "--model.start_from", "start", "--model.start", "merge")
    else:
        fit(root, said, tiny_folder, "lora", start_from="start", start="merge")
    run = root / "logs" / "toy" / said
    assert yaml.safe_load((run / "config.yaml").read_text())["model"]["start_from"] == str(moved)
    monkeypatch.chdir("/")
    expected = logits(load_tuned("", run).module, batch)
    moved.rename(tmp_path / "elsewhere")
    told = (
        rf"{run}, which starts from {moved} is no directory.*does not exist.*in {run}/config.yaml \(model.start_from\)"
    )
    with pytest.raises(SettingError, match=told):
        load_tuned("", run)
    with pytest.raises(SettingError, match="did not start from another run"):
        load_tuned("", runs / "lora", start_from=run)
    there = load_tuned("", run, start_from=tmp_path / "elsewhere")
    assert torch.equal(logits(there.module, batch), expected)
    out = tmp_path / "out"
    words = ["--run", str(run), "--out", str(out), "--start_from", str(tmp_path / "elsewhere")]
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    runpy.run_path(str(REPOSITORY / "tools" / "export.py"), run_name="__main__")
    written = Backbone(str(out), dtype="float32").load().model
    assert torch.allclose(logits(written, batch), expected, rtol=0, atol=1e-5)


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "adapter", "message"),
    [
        ("lora", new("lora", rank=8), "r 4, here 8"),
        ("lora", new("lora", alpha=4), "lora_alpha 8.0, here 4"),
        ("lora", new("lora", connector="frozen"), r"4 do not train here \['model.multi_modal_projector"),
        ("lora", new("lora", blocks=1), r"do not train here \['base_model.*layers.0"),
        ("lora", new("full"), "holds a LoRA adapter, this run trains Full"),
        ("connector", new("full"), r"tensors are not in it \['model.language_model.layers.1"),
        ("full", new("connector"), r"do not train here \['model.language_model.layers.1"),
        ("pissa", new("pissa"), "cannot be taken apart again. Set model.start: merge"),
    ],
)
def test_another_shape_is_refused_by_name(
    runs: Runs, tiny_folder: Path, name: str, adapter: Adapter, message: str
) -> None:
    with pytest.raises(AdapterError, match=message):
        begun(tiny_folder, adapter, runs / name)


@pytest.mark.parametrize(("name", "kind"), [("prefix", "PREFIX_TUNING"), ("bottleneck", "BOTTLENECK")])
def test_what_is_no_update_of_weights_is_not_merged(runs: Runs, tiny_folder: Path, name: str, kind: str) -> None:
    with pytest.raises(AdapterError, match=f"{kind} adds computations, not an update of the weights"):
        begun(tiny_folder, new("lora"), runs / name, "merge")


def test_packed_weights_are_not_merged_into(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(SettingError, match="those of a backbone in 4bit are packed integers"):
        find_start(runs / "lora", "merge").load(Backbone(quantization="4bit"))


@pytest.mark.parametrize("start", ["keep", "merge"])
def test_another_backbone_is_refused_with_both_names(runs: Runs, tmp_path: Path, start: str) -> None:
    from tests.tiny import save_tiny

    other = save_tiny(tmp_path / "other", seed=1)
    with pytest.raises(SettingError, match=rf"{runs / 'lora'} was trained on the backbone .*not the one here.*{other}"):
        begun(other, new("lora"), runs / "lora", start)


def test_a_run_that_is_none_is_refused_before_anything_is_loaded(
    runs: Runs, root: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = runs / "lora"
    monkeypatch.setattr(Backbone, "load", lambda self: pytest.fail("loaded"))
    with pytest.raises(SettingError, match=r"model.start_from: .*none is no directory of a finished run"):
        fit(root, "refused", tiny_folder, "lora", "--model.start_from", str(tmp_path / "none"))
    stopped = tmp_path / "stopped"
    shutil.copytree(run, stopped, ignore=shutil.ignore_patterns("adapter"))
    with pytest.raises(SettingError, match="stopped is no directory of a finished run: adapter not found"):
        fit(root, "refused", tiny_folder, "lora", "--model.start_from", str(stopped))
    with pytest.raises(SystemExit):
        fit(root, "refused", tiny_folder, "lora", "--model.start_from", str(run), "--model.start", "merged")
    with pytest.raises(SettingError, match="model.start is 'merged'; expected keep or merge"):
        MLLMModule(Backbone(), LoRA(), start_from=str(run), start="merged")  # type: ignore[arg-type]
    assert not (root / "logs" / "toy" / "refused").exists()


def test_a_circle_is_refused(runs: Runs, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for run, start in ((one, two), (two, one)):
        shutil.copytree(runs / "lora", run)
        config = yaml.safe_load((run / "config.yaml").read_text())
        config["model"]["start_from"] = str(start)
        (run / "config.yaml").write_text(yaml.safe_dump(config))
    told = f"{one}, which starts from {two}, which starts from {one}: that is a circle"
    with pytest.raises(SettingError, match=told):
        find_start(one)
    with pytest.raises(SettingError, match="circle"):
        load_tuned("", two)


# ---- θ0, resuming, scores --------------------------------------------------------------------------------------------


def trained(run: Path) -> dict[str, torch.Tensor]:
    """What a run changed of the backbone's own tensors."""
    from safetensors.torch import load_file

    files = (run / "adapter" / "connector.safetensors", run / "adapter" / "delta.safetensors")
    return {name: tensor for file in files if file.is_file() for name, tensor in load_file(file).items()}


def penalty(rule: L2SP, module: MLLMModule) -> float:
    parameters = dict(module.trainable())
    rule.attach(torch.optim.SGD(parameters.values()), parameters.items(), module.reference)
    return float(rule.penalty())


@pytest.mark.parametrize("start", ["keep", "merge"])
def test_a_pull_goes_to_the_base_or_to_the_start(runs: Runs, tiny_folder: Path, start: str) -> None:
    run, base = runs / "full", Backbone(str(tiny_folder), dtype="float32").load().model
    moved = sum(float((t - base.get_parameter(n)).double().square().sum()) for n, t in trained(run).items())
    assert moved > 1e-3
    for reference, expected in (("base", 0.35 * moved), ("start", 0.0)):
        rule = L2SP(0.7, reference=reference)
        module = begun(tiny_folder, new("full"), run, start, importance=rule)
        assert penalty(rule, module) == pytest.approx(expected, rel=1e-6)


def test_the_base_of_a_tensor_that_an_adapter_has_made_is_how_it_was_made(runs: Runs, tiny_folder: Path) -> None:
    fresh = MLLMModule(Backbone(str(tiny_folder), dtype="float32"), new("lora"))
    fresh.configure_model()
    rule = L2SP(0.7, reference="base")
    module = begun(tiny_folder, new("lora"), runs / "lora", importance=rule)
    pairs = zip(fresh.trainable(), module.trainable(), strict=True)
    moved = sum(float((now - made).double().square().sum()) for (_, made), (_, now) in pairs)
    assert moved > 1e-3
    assert penalty(rule, module) == pytest.approx(0.35 * moved, rel=1e-6)
    # On top of merged weights a new adapter is as far from its base as from its start: not at all.
    rule = L2SP(0.7, reference="base")
    module = begun(tiny_folder, new("lora", connector="frozen"), runs / "lora", "merge", importance=rule)
    assert penalty(rule, module) == 0


@pytest.mark.parametrize(
    ("name", "start", "reference", "told", "untold"),
    [
        ("lora", "keep", "start", "at the start, as other runs have left them", "created by LoRA"),
        ("lora", "keep", "base", "in the backbone, before any run", None),
        ("lora", "merge", "base", "created by LoRA. Their θ0 is what they held when they were attached", None),
        ("full", "keep", "base", "in the backbone, before any run", "created by"),
    ],
)
def test_the_run_says_what_its_reference_is(
    runs: Runs,
    tiny_folder: Path,
    caplog: pytest.LogCaptureFixture,
    name: str,
    start: Any,
    reference: Any,
    told: str,
    untold: str | None,
) -> None:
    rule = L2SP(reference=reference)
    module = begun(tiny_folder, new(name), runs / name, start, importance=rule)
    penalty(rule, module)
    with caplog.at_level("INFO"):
        say_what_reference_is(rule, module)
    assert told in caplog.text
    assert untold is None or untold not in caplog.text


def test_a_misspelt_reference_is_refused() -> None:
    from mllm_lit.importance import RuleError

    with pytest.raises(RuleError, match="importance.reference is 'bas'; expected start or base"):
        L2SP(reference="bas")


PULL = ("--model.importance", "mllm_lit.importance.L2SP", "--model.importance.strength", "0.7")


def stored(run: Path, step: int) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(run / "checkpoints" / f"step={step}.ckpt", weights_only=True)
    return loaded


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["base", "start"])
@pytest.mark.parametrize(("first", "adapter", "start"), [("full", "full", "keep"), ("lora", "full", "merge")])
def test_a_resumed_run_is_the_uninterrupted_one(
    runs: Runs, root: Path, tiny_folder: Path, tmp_path: Path, first: str, adapter: str, start: str, reference: str
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(runs / first, moved)
    words = (*PULL, "--model.importance.reference", reference, "--model.start", start)
    name = f"{first}_{start}_{reference}"
    whole = fit(root, name, tiny_folder, adapter, *words, "--model.start_from", str(runs / first))
    base = dict(Backbone(str(tiny_folder), dtype="float32").load().model.named_parameters())
    at_start = dict(begun(tiny_folder, new(adapter), runs / first, start).trainable())
    theta0 = whole.model.importance.reference
    assert theta0.keys() == at_start.keys()
    for key, tensor in theta0.items():
        assert torch.equal(tensor.float(), (base if reference == "base" else at_start)[key])
    assert any(not torch.equal(base[key], at_start[key]) for key in at_start)
    run = root / "logs" / "toy" / name
    again = ("--ckpt_path", str(run / "checkpoints" / "step=3.ckpt"), "--model.start_from", str(moved))
    fit(root, f"{name}_again", tiny_folder, adapter, *words, *again)
    one, other = stored(run, 6), stored(root / "logs" / "toy" / f"{name}_again", 6)
    for key, tensor in one["state_dict"].items():
        assert torch.equal(tensor, other["state_dict"][key])
        assert not torch.equal(tensor, stored(run, 3)["state_dict"][key])


@pytest.mark.slow
def test_a_run_resumes_from_its_own_start_only(runs: Runs, root: Path, tiny_folder: Path) -> None:
    words = ("--model.start_from", str(runs / "full"))
    fit(root, "own", tiny_folder, "full", *words)
    back = ("--ckpt_path", str(root / "logs" / "toy" / "own" / "checkpoints" / "step=3.ckpt"))
    with pytest.raises(SettingError, match=r"run went on with the adapter \w{12}, this one began with a new adapter"):
        fit(root, "other", tiny_folder, "full", *back)
    with pytest.raises(SettingError, match=r"went on with the adapter \w{12}, this one went on with the adapter"):
        fit(root, "other", tiny_folder, "full", *back, "--model.start_from", str(root / "logs" / "toy" / "own"))
    with pytest.raises(SettingError, match="was trained on the backbone"):
        fit(root, "other", tiny_folder, "full", *back, *words, "--model.start", "merge")


def scores(run: Path, phase: str) -> Any:
    return json.loads((run / "summary.json").read_text())["scores"][phase]["toy"]


@pytest.mark.slow
@pytest.mark.parametrize("start", ["keep", "merge"])
def test_scores_before_training_are_those_of_the_start(
    root: Path, tiny_folder: Path, tmp_path: Path, start: str
) -> None:
    kept = ("--keep_before", str(tmp_path / "kept"))
    fit(root, f"{start}_plain", tiny_folder, "lora", *kept)
    logs = root / "logs" / "toy"
    taught = logs / f"{start}_taught"
    fit(root, taught.name, tiny_folder, "lora", "--model.adapter.lr", "2e-2")
    words = ("--model.start_from", str(taught), "--model.start", start)
    for name in (f"{start}_scores", f"{start}_scores_again"):
        fit(root, name, tiny_folder, "lora", *words, *kept)
        assert scores(logs / name, "before") == pytest.approx(scores(taught, "after"), rel=1e-5)
    assert len(list((tmp_path / "kept").glob("*/scores.json"))) == 2, "of the backbone and of the start"
    assert scores(logs / f"{start}_plain", "before")["nll"] > scores(taught, "after")["nll"] + 0.1
    # Measured again by a resumed run that scores other rows, on the weights that were there before its checkpoint's.
    back = ("--ckpt_path", str(logs / f"{start}_scores" / "checkpoints" / "step=3.ckpt"))
    fewer = ("--data.max_eval_samples", "2")
    fit(root, f"{start}_resumed", tiny_folder, "lora", *words, *back, *fewer)
    fit(root, f"{start}_fewer", tiny_folder, "lora", *words, *fewer)
    assert scores(logs / f"{start}_resumed", "before") == scores(logs / f"{start}_fewer", "before")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["keep", "merge"])
def test_tools_open_a_run_with_its_start(
    runs: Runs, root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    run = root / "logs" / "toy" / f"{start}_swept"
    longer = ("--trainer.max_steps", "18")  # so that the ends differ
    fit(root, run.name, tiny_folder, "lora", "--model.start_from", str(runs / "lora"), "--model.start", start, *longer)
    monkeypatch.setattr(sys, "argv", ["merge.py", str(run), "--method", "wise_ft", "--trust", "tests"])
    runpy.run_path(str(REPOSITORY / "tools" / "merge.py"))["main"]()
    points = json.loads((run / "merges" / "wise_ft" / "merge.json").read_text())["points"]
    ends = points[2]["scores"]["toy"], points[-1]["scores"]["toy"]
    assert ends[0] == pytest.approx(scores(run, "before"), rel=1e-4)
    assert ends[1] == pytest.approx(scores(run, "after"), rel=1e-4)
    assert ends[0]["nll"] != pytest.approx(ends[1]["nll"], rel=1e-2)
    out = root / f"{start}_evaluated"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "--run", str(run), "--trust", "tests", "--out", str(out)])
    runpy.run_path(str(REPOSITORY / "tools" / "evaluate.py"))["main"]()
    assert json.loads((out / "scores.json").read_text())["toy"] == pytest.approx(scores(run, "after"), rel=1e-4)
