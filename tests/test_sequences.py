"""A stage of a sequence of tasks: other targets scored beside it, replayed, remembered; θ0 over several stages."""

import json
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console
from safetensors.torch import load_file

from mllm_lit.backbones import Backbone
from mllm_lit.callbacks.resume import FREE, ResumeError, covered
from mllm_lit.data import Source, Sources, VQADataModule
from mllm_lit.errors import UserError
from mllm_lit.importance import EWC, L2SP, RuleError, Spider
from mllm_lit.merging import report
from mllm_lit.summary import summarise, table
from mllm_lit.tasks import DatasetError
from tests.test_run import config, run
from tests.test_start_from import begun, fit, new, trained
from tests.toy import Toy, ToySource

__all__ = ["config"]  # the fixture


def held(root: Path, *names: str) -> Sources:
    return Sources({name: Source(ToySource(), root) for name in names})


# ---- other sets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "others", "carry"),
    [
        (["toy"], [], "the target and data.sources have the name 'toy'"),
        ([], ["toy"], "the target and data.others have the name 'toy'"),
        (["one", "two"], ["two"], "data.sources and data.others have the name 'two'"),
        (["toy"], ["toy"], "the target and data.sources and data.others have the name 'toy'"),
    ],
)
def test_a_name_is_of_one_set(sources: list[str], others: list[str], carry: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=carry):
        VQADataModule(Toy(), tmp_path, held(tmp_path, *sources), held(tmp_path, *others))


def test_others_are_read_and_scored_as_sources_are(tmp_path: Path) -> None:
    data = VQADataModule(
        Toy(), tmp_path, held(tmp_path, "one"), held(tmp_path, "two"), replay=0.5, replay_from=["two"], val_samples=3
    )
    assert list(data.readers()) == ["toy train", "toy val", "toy test", "one test", "two test", "two train"]
    data.setup("fit")
    for phase in ("val", "test"):
        assert [(one.name, one.counts) for one in data.sets[phase]] == [("toy", True), ("one", True), ("two", False)]
    assert data.sampled.keys() == {"replay/two", "val/toy", "val/one", "val/two"}
    assert list(data.tasks) == ["toy", "one", "two"]


def test_what_is_scored_besides_may_change_in_a_resumed_run() -> None:
    assert covered("data.others.sets.gqa.split", FREE)
    assert not covered("data.replay_from", FREE)


def summary(others: dict[str, str]) -> dict[str, Any]:
    scores = {"toy": (30.0, 50.0), "one": (80.0, 60.0), "two": (40.0, 20.0), "later": (10.0, 15.0)}
    return summarise(
        experiment="stage", seed=1, parts={"backbone": "b", "adapter": "a", "importance": None},
        headlines={"toy": "accuracy", "one": "accuracy"}, others=others,
        before={name: {"accuracy": before, "nll": 1.0} for name, (before, _) in scores.items()},
        after={name: {"accuracy": after, "nll": 2.0} for name, (_, after) in scores.items()},
        parameters={"total": 10, "trainable": 1}, precision={}, during=[],
        cost={"steps": 1, "train_seconds": 1.0, "tokens_per_second": 1.0, "peak_memory_bytes": 1},
    )  # fmt: skip


def test_others_enter_no_mean_and_stand_apart() -> None:
    with_others = summary({"two": "accuracy", "later": "accuracy"})
    assert (
        with_others["tradeoff"]
        == summary({})["tradeoff"]
        == pytest.approx({"A_S": 60, "A_T": 50, "H": 2 / (1 / 60 + 1 / 50), "O": 55, "A_S_normalised": 75})
    )
    assert with_others["sources"].keys() == {"one"}
    assert with_others["others"].keys() == {"two", "later"}
    assert with_others["others"]["two"].keys() == with_others["sources"]["one"].keys()
    assert [row["forgetting"] for row in with_others["others"].values()] == [20, -5]
    out = StringIO()
    Console(file=out, width=80).print(table(with_others))
    lines = [line.split()[0] if line.split() else "" for line in out.getvalue().splitlines()]
    assert lines[1:12] == ["", "target", "sources", "others", lines[5], "toy", "", "one", "", "two", "later"]
    heads = ({"toy": "accuracy", "one": "accuracy"}, {"two": "accuracy"})
    point = report.point("x", with_others["scores"]["after"], *heads)
    assert (point["sources"], point["others"], point["tradeoff"]["A_S"]) == ({"one": 60}, {"two": 20}, 60)


@pytest.mark.slow
def test_a_stage_scores_the_other_targets(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before, during and after; kept scores, answers, ids, TensorBoard; resumed with others left out."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = yaml.safe_load(config.read_text())
    own = settings["data"]["init_args"]
    own["others"] = {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {}}}
    for name, part in (("earlier", {"max_samples": 4}), ("later", {})):
        own["others"]["init_args"]["sets"][name] = own["sources"]["init_args"]["sets"]["source"] | part
    config.write_text(yaml.safe_dump(settings))
    words = ["--config", str(config), "--keep_before", str(tmp_path / "kept"), "--trainer.max_steps", "4"]
    words += ["--trainer.val_check_interval", "2", "--data.replay", "0.2", "--data.replay_from", "[earlier]"]
    for _ in range(2):
        run(monkeypatch, *words)
    logs = tmp_path / "logs" / "toy_run"
    told, again = (json.loads((logs / f"version_{i}" / "summary.json").read_text()) for i in range(2))
    assert told["scores"] == again["scores"]
    assert len(list((tmp_path / "kept").glob("*/scores.json"))) == 1
    assert (told["sources"].keys(), told["others"].keys()) == ({"source"}, {"earlier", "later"})
    assert told["tradeoff"]["A_S"] == told["sources"]["source"]["after"]
    for phase in ("before", "step-000002", "after"):
        rows = [(logs / "version_0/predictions" / phase / f"{name}.jsonl") for name in ("earlier", "later")]
        assert len(rows[0].read_text().splitlines()) == 4
        assert len(rows[1].read_text().splitlines()) == 7
    ids = {path.relative_to(logs / "version_0/ids").as_posix() for path in (logs / "version_0/ids").rglob("*.txt")}
    assert ids == {"replay/earlier.txt", "test/earlier.txt", "val/earlier.txt"}
    tags = EventAccumulator(str(logs / "version_0")).Reload().Tags()["scalars"]
    assert {"val/later/nll", "test/earlier/accuracy", "final/later", "final/earlier"} <= set(tags)
    assert not any(tag.startswith("sequence/") for tag in tags)
    run(monkeypatch, *words, "--model.start_from", str(logs / "version_0"))
    assert "sequence/scores" in EventAccumulator(str(logs / "version_2")).Reload().Tags()["images"]
    back = ("--ckpt_path", str(logs / "version_0/checkpoints/last.ckpt"))
    with pytest.raises(ResumeError, match="data.replay_from"):
        run(monkeypatch, *words, *back, "--data.replay_from", "[source]")
    del own["others"]["init_args"]["sets"]["later"]
    config.write_text(yaml.safe_dump(settings))
    run(monkeypatch, *words, *back)
    fewer = json.loads((logs / "version_3" / "summary.json").read_text())
    assert fewer["others"] == {"earlier": told["others"]["earlier"]}


def test_a_target_may_have_a_name_of_its_own(tmp_path: Path) -> None:
    """Two stages of one task, told apart."""
    data = VQADataModule(Toy(), tmp_path, name="first", others=held(tmp_path, "toy"))
    data.setup("test")
    assert [one.name for one in data.sets["test"]] == [*data.tasks] == ["first", "toy"]
    with pytest.raises(DatasetError, match="the target and data.others have the name 'second'"):
        VQADataModule(Toy(), tmp_path, name="second", others=held(tmp_path, "second"))


def test_every_stage_so_far_is_drawn(tmp_path: Path) -> None:
    """The third stage of three, whose second has no word of the task to come."""
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from mllm_lit.callbacks.sequence import log_sequence

    def stage(target: str, after: float, **others: float) -> dict[str, Any]:
        rows = {name: {"after": score} for name, score in others.items()}
        return {"target": {"name": target, "after": after}, "others": rows}

    told = [stage("a", 80.0, b=10.0, c=0.0), stage("b", 70.0, a=60.0), stage("c", 90.0, a=50.0, b=40.0)]
    for number, one in enumerate(told[:2]):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "summary.json").write_text(json.dumps(one))
    board, table = TensorBoardLogger(tmp_path, "board", "0"), CSVLogger(tmp_path, "table", "0")
    trainer: Any = SimpleNamespace(loggers=[board, table], callbacks=[], global_step=7)
    log_sequence(trainer, [tmp_path / "0", tmp_path / "1"], told[2])
    board.finalize("success")
    table.finalize("success")
    events = EventAccumulator(str(tmp_path / "board" / "0")).Reload()
    assert [one.step for one in events.Images("sequence/scores")] == [7]
    found = {name: events.Scalars(f"sequence/{name}")[0].value for name in ("MFT", "MFN", "MAA", "BWT")}
    assert found == pytest.approx({"MFT": 80, "MFN": 60, "MAA": (80 + 65 + 60) / 3, "BWT": -30})
    assert "sequence/MFN" in (tmp_path / "table" / "0" / "metrics.csv").read_text()
    (tmp_path / "1" / "summary.json").write_text(json.dumps(stage("b", 70.0)))  # `a` was not scored after `b`
    alone = TensorBoardLogger(tmp_path, "board", "1")
    trainer.loggers = [alone]
    log_sequence(trainer, [tmp_path / "0", tmp_path / "1"], told[2])
    alone.finalize("success")
    tags = EventAccumulator(str(tmp_path / "board" / "1")).Reload().Tags()
    assert (tags["images"], tags["scalars"]) == (["sequence/scores"], [])


# ---- what rules remember ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


def stage(root: Path, name: str, backbone: Path, adapter: str, *words: str, **model: Any) -> Any:
    """A run of two steps in ``root/logs/toy/NAME``, with a source and an other set."""
    for kind, task in (("sources", "ToySource"), ("others", "Album")):
        one = {"task": {"class_path": f"tests.toy.{task}"}, "root": str(root / "data"), "max_samples": 3}
        held = {"class_path": "mllm_lit.data.Sources", "init_args": {"sets": {f"{kind}_set": one}}}
        (root / f"{kind}.yaml").write_text(yaml.safe_dump(held))
    own = ("--data.sources", str(root / "sources.yaml"), "--data.others", str(root / "others.yaml"))
    own = (*own, "--trainer.max_steps", "2", "--trainer.precision", "32-true")
    return fit(root, name, backbone, adapter, *own, *words, **model)


def ewc(**options: Any) -> dict[str, Any]:
    return {"class_path": "mllm_lit.importance.EWC", "init_args": {"rows": 3, "accumulate": True, **options}}


def after(run: Path, start: str = "keep") -> dict[str, Any]:
    return {"start_from": str(run), "start": start}


def fisher(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "importance.safetensors")


@pytest.mark.slow
def test_fisher_information_accumulates_over_three_stages(root: Path, tiny_folder: Path) -> None:
    """Each stage adds what the same stage alone finds, on the rows that are named; resumed it does not add again."""
    logs = root / "logs" / "toy"
    stage(root, "first", tiny_folder, "full", importance=ewc())
    before = fisher(logs / "first")
    assert all(name.startswith("fisher/") for name in before)
    for name, start, of in (("second", "keep", "first"), ("third", "merge", "second")):
        settings = {"rows_from": ["others_set"], "decay": 0.5}
        stage(root, name, tiny_folder, "full", importance=ewc(**settings), **after(logs / of, start))
        alone = ewc(**settings, accumulate=False)
        cli = stage(root, f"{name}_alone", tiny_folder, "full", importance=alone, **after(logs / of, start))
        assert not (logs / f"{name}_alone" / "importance.safetensors").exists()
        own, total = cli.model.importance.buffers["fisher"], fisher(logs / name)
        assert {f"fisher/{key}" for key in own} == total.keys() == before.keys()
        for key, value in own.items():
            torch.testing.assert_close(total[f"fisher/{key}"], value + 0.5 * before[f"fisher/{key}"])
            assert bool((value > 0).any())
        before = total
    (logs / "second" / "importance.safetensors").rename(logs / "second" / "moved")
    back = ("--ckpt_path", str(logs / "third" / "checkpoints" / "last.ckpt"))
    stage(root, "back", tiny_folder, "full", *back, importance=ewc(**settings), **after(logs / "second", "merge"))
    assert all(torch.equal(value, before[key]) for key, value in fisher(logs / "back").items())
    sources = ewc(decay=0.5, accumulate=False)
    cli = stage(root, "sources", tiny_folder, "full", importance=sources, **after(logs / "second", "merge"))
    assert any(not torch.equal(own[key], value) for key, value in cli.model.importance.buffers["fisher"].items())


@pytest.mark.slow
def test_fisher_information_that_cannot_go_on_is_refused(
    root: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = root / "logs" / "toy"
    stage(root, "lora", tiny_folder, "lora", importance=ewc())
    stage(root, "plain", tiny_folder, "lora", importance=ewc(accumulate=False))
    with pytest.raises(RuleError, match=r"model.start: merge 28 of the 32 trainable tensors, such as .*lora_A"):
        stage(root, "refused", tiny_folder, "lora", importance=ewc(), **after(logs / "lora", "merge"))
    with pytest.raises(RuleError, match=r"of other tensors.*: \d+ are not in it .*, 32 do not train here .*Train what"):
        stage(root, "refused", tiny_folder, "full", importance=ewc(), **after(logs / "lora", "merge"))
    monkeypatch.setattr(VQADataModule, "train_dataloader", lambda self: pytest.fail("measured"))
    with pytest.raises(RuleError, match=r"plain has no importance.safetensors, in which EWC would go on"):
        stage(root, "refused", tiny_folder, "lora", importance=ewc(), **after(logs / "plain"))
    with pytest.raises(UserError, match=r"importance.rows_from names \['gqa'\]; the sources are: sources_set"):
        stage(root, "refused", tiny_folder, "lora", importance=ewc(rows_from=["gqa"]))
    assert not (logs / "refused").exists()


@pytest.mark.parametrize("start", ["keep", "merge"])
def test_reference_over_three_stages(root: Path, tiny_folder: Path, start: str) -> None:
    """θ0 of a third stage: what the second has left, or the backbone's own weights; for every rule that has one."""
    logs = root / "logs" / "toy"
    stage(root, f"{start}_one", tiny_folder, "full")
    stage(root, f"{start}_two", tiny_folder, "full", **after(logs / f"{start}_one", start))
    base = dict(Backbone(str(tiny_folder), dtype="float32").load().model.named_parameters())
    one, two = (trained(logs / f"{start}_{number}") for number in ("one", "two"))
    assert one.keys() == two.keys()
    for expected, reference in ((two, "start"), (base, "base")):
        for rule in (L2SP(reference=reference), EWC(reference=reference), Spider(reference=reference)):
            module = begun(tiny_folder, new("full"), logs / f"{start}_two", start, importance=rule)
            parameters = dict(module.trainable())
            rule.attach(torch.optim.SGD(parameters.values()), parameters.items(), module.reference)
            assert rule.reference is not None
            assert rule.reference.keys() == two.keys()
            for name, value in rule.reference.items():
                assert torch.equal(value.float(), expected[name])
                assert torch.equal(parameters[name], two[name])
    assert all(any(not torch.equal(x[name], y[name]) for name in two) for x, y in ((base, one), (one, two)))
