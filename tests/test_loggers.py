"""What each logger holds after a run, read back with its own reader where it has one."""

import json
import statistics
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from mllm_lit.callbacks.overview import overview
from mllm_lit.loggers import log_histogram, log_picture, log_scalars, log_settings, log_table, log_text
from mllm_lit.metrics import tradeoff
from tests.conftest import REPOSITORY
from tests.test_run import config, run  # noqa: F401

SPIDER = ["--model.adapter", str(REPOSITORY / "configs" / "adapters" / "full.yaml"), "--model.importance"]
SPIDER += [str(REPOSITORY / "configs" / "importance" / "spider.yaml"), "--model.importance_log_every", "2"]
SHORT = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--trainer.log_every_n_steps", "1"]
SHORT += ["--data.val_samples", "3"]
SCALARS = {"Overview/A_S", "Overview/forgotten/source", "val/toy/nll", "test/source/nll", "final/A_S"}
SCALARS |= {"train/loss", "lr/llm", "train/tokens_per_second", "importance/llm/selected"}
PICTURES = {"toy/before", "toy/during", "source/after", "importance/selected", "forgetting/target_against_sources"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Of the first run."""
    return tmp_path / "logs" / "toy_run" / "version_0"


def logger(kind: str, **given: Any) -> str:
    return json.dumps({"class_path": f"lightning.pytorch.loggers.{kind}", "init_args": given})


@pytest.mark.slow
def test_tensorboard_has_curves_from_step_0(
    config: Path,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(monkeypatch, "--config", str(config), *SPIDER, *SHORT)
    events = EventAccumulator(str(folder)).Reload()
    tags = events.Tags()
    assert set(tags["scalars"]) >= SCALARS
    assert set(tags["images"]) >= PICTURES
    curves = {"A_S", "A_T", "H", "target/toy", "source/source", "forgotten/source"}
    assert {tag for tag in tags["scalars"] if tag.startswith("Overview/")} == {f"Overview/{name}" for name in curves}
    for name in (*(f"Overview/{name}" for name in curves), "val/toy/nll", "val/source/nll"):
        assert [event.step for event in events.Scalars(name)] == [0, 2, 4]
    # Before training, on the samples of the validations: the source's are among those of the test set.
    before = [json.loads(line) for line in (folder / "predictions" / "before" / "source.jsonl").open()]
    ids = (folder / "ids" / "val" / "source.txt").read_text().split()
    mine = [row for row in before if row["id"] in ids]
    assert len(mine) == len(ids) == 3
    tokens = [row["answer_tokens"] for row in mine]
    nll = np.average([row["nll"] for row in mine], weights=tokens)
    assert events.Scalars("val/source/nll")[0].value == pytest.approx(nll)  # fp32
    assert [path.name for path in (folder / "predictions" / "step-000000").glob("*.jsonl")] == ["toy.jsonl"]


@pytest.mark.slow
def test_without_validations_the_curves_have_two_points_and_nothing_more_is_scored(
    config: Path,  # noqa: F811
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorboard.backend.event_processing import data_provider, plugin_event_multiplexer
    from tensorboard.context import RequestContext
    from tensorboard.plugins.base_plugin import TBContext
    from tensorboard.plugins.hparams.backend_context import Context

    run(monkeypatch, "--config", str(config), "--trainer.max_steps", "2")
    events = plugin_event_multiplexer.EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    assert [event.step for event in events.Tensors(".", "Overview/forgotten/source")] == [0, 2]
    assert {path.name for path in (folder / "predictions").iterdir()} == {"before", "after"}
    # The HParams tab, as TensorBoard's server orders it.
    context = Context(TBContext(data_provider=data_provider.MultiplexerDataProvider(events, str(folder))))
    told = (RequestContext(), "", True, context.hparams_metadata(RequestContext(), ""), [])
    shown = context.experiment_from_metadata(*told)
    names = [one.name for one in shown.hparam_infos]
    assert names[:4] == ["Adapter", "Learning rate", "Objective", "Rule"]
    assert shown.metric_infos[0].name.tag == "final/A_S"


@pytest.mark.slow
def test_wandb_offline(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    wandb = pytest.importorskip("wandb", reason="the package wandb is not installed")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")  # which Lightning's logger sets, and leaves
    words = ["--trainer.logger", logger("WandbLogger", offline=True, save_dir=str(tmp_path))]
    run(monkeypatch, "--config", str(config), *SPIDER, *SHORT, *words)
    wandb.finish()
    wandb.teardown()  # as at a process's end: until then the last rows may not be in the file
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    history: dict[str, list[tuple[int, Any]]] = {}
    settings = {}
    for record in wandb_records(file):
        row = values(record.history.item)
        for name, value in row.items():
            history.setdefault(name, []).append((row.get("trainer/global_step"), value))
        settings |= values([*record.config.update, *record.run.config.update])
    assert history.keys() >= SCALARS | PICTURES | {"importance_mask/llm", "parameters", "config"}
    assert [step for step, _ in history["Overview/A_S"]] == [0, 2, 4]
    assert (settings["Adapter"], settings["Rule"], settings["Objective"]) == ("Full", "Spider", "none")
    assert settings["model.adapter.lr"] == settings["Learning rate"]
    files = file.parent / "files"
    during = [value for _, value in history["toy/during"]]
    assert [step for step, _ in history["toy/during"]] == [2, 4]
    with Image.open(files / during[0]["filenames"][0]) as picture:
        assert picture.size == (during[0]["width"], during[0]["height"])
    table = json.loads((files / history["parameters"][0][1]["path"]).read_text())
    assert table["columns"][:3] == ["role", "parameters", "trained"]
    assert [row[0] for row in table["data"]] == ["vision", "connector", "llm", "all"]
    mask = history["importance_mask/llm"][0][1]
    assert mask["_type"] == "histogram"
    assert len(mask["bins"]) == len(mask["values"]) + 1
    assert "seed_everything: 42" in (files / history["config"][0][1]["path"]).read_text()


def values(items: Any) -> dict[str, Any]:
    """What is under each name; of a nested one, each part comes alone."""
    found: dict[str, Any] = {}
    for item in items:
        name, *inside = item.nested_key or [item.key]
        value = json.loads(item.value_json)
        if inside:
            found.setdefault(name, {})[inside[0]] = value
        else:
            found[name] = value
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """Of an offline run: wandb has no reader, but writes LevelDB's log format, seven bytes behind a header."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, block = file.read_bytes(), 32 * 1024
    assert data[:4] == b":W&B"
    place, whole = 7, b""
    while place < len(data):
        left = block - place % block
        if left < 7:  # too little for a header: padding
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + 7])
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # all of a record, or its last part
            yield Record.FromString(whole)
            whole = b""


@pytest.mark.slow
def test_mlflow_and_csv_beside_one_another(
    config: Path,  # noqa: F811
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pytest.importorskip("mlflow", reason="the package mlflow-skinny is not installed")
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    kinds = [logger("MLFlowLogger", save_dir=str(tmp_path / "mlruns")), logger("CSVLogger", save_dir=str(tmp_path))]
    words = ["--trainer.logger", f"[{', '.join(kinds)}]"]
    monkeypatch.setattr("tests.toy.Toy.metric", by_answer)
    with caplog.at_level("INFO"):
        run(monkeypatch, "--config", str(config), *SPIDER, *SHORT, *words, "--model.adapter.weight_decay", "0.1")
    client = MlflowClient(f"file:{tmp_path / 'mlruns'}")
    (stored,) = client.search_runs([client.get_experiment_by_name("lightning_logs").experiment_id])
    assert stored.info.status == "FINISHED"
    params, metrics = stored.data.params, stored.data.metrics
    assert (params["Adapter"], params["Rule"], params["model.adapter.lr"]) == ("Full", "Spider", "2e-05")
    assert metrics.keys() >= SCALARS | {"val/toy/accuracy", "val/toy/accuracy.red", "lr/connector.no_decay"}
    curve = client.get_metric_history(stored.info.run_id, "Overview/H")
    assert [one.step for one in curve] == [0, 2, 4]
    artifacts = {one.path for one in client.list_artifacts(stored.info.run_id)}
    assert artifacts == {"config.yaml", "parameters.md", "vision_cache.md", "images"}
    images = [Path(one.path).name for one in client.list_artifacts(stored.info.run_id, "images")]
    assert {name.split("+")[0].replace("~", "/") for name in images} >= PICTURES
    text = Path(client.download_artifacts(stored.info.run_id, "config.yaml", str(tmp_path))).read_text()
    assert yaml.safe_load(text)["trainer"]["max_steps"] == 4
    summary = json.loads((folder / "summary.json").read_text())
    assert metrics["final/source"] == summary["sources"]["source"]["after"]
    # CSV: numbers and settings in its own folder, the rest as files of the run.
    rows = np.genfromtxt(tmp_path / "lightning_logs/version_0/metrics.csv", delimiter=",", names=True, deletechars="")
    columns = {name: rows[name][~np.isnan(rows[name])] for name in rows.dtype.names}
    assert columns.keys() >= SCALARS | {"val/toy/accuracy/red"}
    assert columns["Overview/H"].tolist() == pytest.approx([one.value for one in curve])
    hparams = yaml.safe_load((tmp_path / "lightning_logs/version_0/hparams.yaml").read_text())
    assert hparams["Adapter"] == "Full"
    for tag in PICTURES:
        with Image.open(max((folder / "logged" / tag).iterdir())) as picture:
            assert min(picture.size) > 100
    assert (folder / "logged" / "parameters.md").read_text().startswith("| role |")
    assert caplog.text.count(f"CSVLogger shows no texts and pictures: they are in {folder / 'logged'}") == 1
    assert caplog.text.count("MLFlowLogger shows no histograms: those of importance_mask/* are left out") == 1


def by_answer(self: Any) -> Any:
    """A metric with parts, whose names go on behind that of the whole."""
    from mllm_lit.metrics.exact import ExactMatch

    class ByAnswer(ExactMatch):
        def compute(self) -> dict[str, float]:
            return {**super().compute(), "accuracy/red": 1.0}

    return ByAnswer()


class Recorder(Logger):
    """Somebody else's logger, which can do what Lightning asks of every one."""

    name, version = "recorder", "0"

    def __init__(self, folder: Path | None = None) -> None:
        self.folder, self.told = folder, list[Any]()

    @property
    def save_dir(self) -> str | None:
        return None if self.folder is None else str(self.folder)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.told.append((metrics, step))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.told.append(params)


def everything(*loggers: Logger) -> None:
    trainer: Any = SimpleNamespace(loggers=loggers, callbacks=[])
    log_scalars(trainer, {"a/b": 1.0, "a/b/c": 2.0}, 3)
    log_table(trainer, "table", "| a | b |\n| --- | --- |\n| 1 | 2 |")
    log_text(trainer, "text", "one\ntwo")
    log_text(trainer, "nothing", "")
    log_picture(trainer, "some/picture", partial(np.full, (4, 6, 3), 7, np.uint8), 5)
    log_histogram(trainer, "h/x", *np.histogram([1.0, 2.0]), 5)  # type: ignore[arg-type]
    log_settings(trainer, {"x": 1})
    log_settings(trainer, {"x": 1}, {"final/y": 2.0}, 9)


def test_a_logger_that_nobody_knows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    homeless, housed = Recorder(), Recorder(tmp_path)
    with caplog.at_level("INFO"):
        everything(homeless, housed)
    told = [({"a/b": 1.0, "a/b/c": 2.0}, 3), {"x": 1}, ({"final/y": 2.0}, 9)]
    assert homeless.told == housed.told == told
    made = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert made == {"logged/table.md", "logged/text.md", "logged/some/picture/step-000005.png"}
    with Image.open(tmp_path / "logged/some/picture/step-000005.png") as picture:
        assert (picture.size, picture.getpixel((0, 0))) == ((6, 4), (7, 7, 7))
    assert sorted(record.getMessage() for record in caplog.records) == [
        "Recorder shows no histograms: those of h/* are left out.",
        "Recorder shows no texts and pictures, and there is no folder for them.",
        f"Recorder shows no texts and pictures: they are in {tmp_path / 'logged'}.",
    ]


def test_nothing_is_drawn_for_nobody(tmp_path: Path) -> None:
    trainer: Any = SimpleNamespace(loggers=[DummyLogger()], callbacks=[])
    log_picture(trainer, "x", pytest.fail, 0)
    trainer.loggers = []
    log_picture(trainer, "x", pytest.fail, 0)
    csv = CSVLogger(tmp_path, "table", "0")
    everything(csv)
    assert (tmp_path / "table" / "0" / "logged" / "text.md").read_text() == "    one\n    two\n"


def test_the_figures_that_one_looks_for_first() -> None:
    headlines = {"t": "accuracy", "a": "cider", "b": "accuracy"}
    start = {"t": {"accuracy": 30.0}, "a": {"cider": 180.0, "nll": 1.0}, "b": {"accuracy": 60.0}}
    now = {"t": {"accuracy": 80.0}, "a": {"cider": 90.0, "nll": 2.0}, "b": {"accuracy": 70.0}, "other": {"nll": 1.0}}
    harmonic = statistics.harmonic_mean([80.0, 80.0])
    expected = {"A_S": 80.0, "A_T": 80.0, "H": harmonic, "target/t": 80.0, "source/a": 90.0, "source/b": 70.0}
    lost = {"forgotten/a": 90.0, "forgotten/b": -10.0}
    assert overview(headlines, start, now) == {f"Overview/{name}": value for name, value in (expected | lost).items()}
    assert overview(headlines, None, now) == {f"Overview/{name}": value for name, value in expected.items()}
    assert overview({"t": "accuracy"}, start, now) == {"Overview/target/t": 80.0}
    assert tradeoff(80.0, [90.0, 70.0])["H"] == harmonic
