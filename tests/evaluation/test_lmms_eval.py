"""lmms-eval asks and scores a model of ours as this package does."""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image, ImageFile

from mllm_lit.commands import evaluate
from mllm_lit.datamodule import MLLMDataModule
from mllm_lit.errors import SettingError, UserError
from mllm_lit.tasks import DatasetError, LmmsEval, ScienceQA
from mllm_lit.tasks.embedded_data import unpacked
from mllm_lit.tasks.lmms_eval import harness
from tests.conftest import REPOSITORY

datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")
try:
    harness()
except SettingError as error:
    pytest.skip(str(error), allow_module_level=True)

ROWS = 24
TASK = """
task: local_scienceqa
dataset_path: parquet
dataset_kwargs:
  data_files: {{train: {table}, test: {table}}}
  cache_dir: {cache}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: !function utils.text
doc_to_target: !function utils.target
process_results: !function utils.score
generation_kwargs:
  max_new_tokens: 16
metric_list:
  - metric: exact_match
    aggregation: mean
    higher_is_better: true
"""
# As in lmms_eval/tasks/scienceqa/utils.py, but for the prompt, which is that of this package's task.
UTILS = """
def visual(doc):
    return [] if doc["image"] is None else [doc["image"].convert("RGB")]


def text(doc):
    return doc["question"] + " " + ", ".join(f"{chr(65 + i)}.{choice}" for i, choice in enumerate(doc["choices"]))


def target(doc):
    return chr(65 + doc["answer"])


def score(doc, results):
    said = results[0].strip()
    right = said.lower() == target(doc).lower() or (said[1:2] == "." and said[0] == target(doc))
    return {"exact_match": float(right)}


def film(doc):
    return ["film.mp4"]


def last(doc):
    shown = [{"type": "image", "url": one} for one in visual(doc)]
    return [{"role": "user", "content": [{"type": "text", "text": text(doc)}, *shown]}]


def share(doc, results):
    near = (doc["answer"] + 1) % len(doc["choices"])
    value = {target(doc): 1.0, chr(65 + near): 0.25}.get(results[0], 0.0)
    return {"share": value, "miss": 1 - value}


def total(values):
    return 3 * sum(values)


def squared(values):
    return sum(value**2 for value in values) / len(values)
"""
OF_ANOTHER_KIND = """
task: local_share
include: local_scienceqa.yaml
process_results: !function utils.share
filter_list:
  - name: letter
    filter:
      - {function: regex, regex_pattern: "([A-Z])"}
      - {function: take_first}
metric_list:
  - {metric: share, aggregation: mean, higher_is_better: true}
  - {metric: miss, aggregation: !function utils.squared, higher_is_better: false}
"""
"""As :data:`TASK`, but scores are parts of 1, of what a filter lets through; one has an aggregation of its own."""
REFUSED = {
    "no_target": ('doc_to_target: ""', "no answers"),
    "likelihood": ("output_type: multiple_choice\ngeneration_kwargs: null", "output_type multiple_choice"),
    "drawn": ("generation_kwargs: {do_sample: true, temperature: 0.7}", "by sampling"),
    "film": ("doc_to_visual: !function utils.film", "it shows video"),
    "last": ("doc_to_messages: !function utils.last", "stands behind a text"),
    "empty": ('doc_to_target: "  "', "blank one for every row"),
    "absent": ("dataset_kwargs: {data_files: {test: /absent.parquet}}", "cannot be loaded: FileNotFoundError"),
    "unscored": (
        "metric_list: [{metric: exact_match, aggregation: !function utils.total, higher_is_better: true}]",
        "no shares of 1",
    ),
}
"""What a task file has beside :data:`TASK`, and how it is refused."""


def run(*words: str) -> None:
    evaluate.main(["--backbone", "embedded", *words])


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an evaluation of the embedded backbone on some of the embedded ScienceQA."""
    out = tmp_path_factory.mktemp("ours")
    run("--out", str(out), "--data.sources", "null", "--data.max_eval_samples", str(ROWS))
    return out


@pytest.fixture(scope="module")
def include(tmp_path_factory: pytest.TempPathFactory, ours: Path) -> Path:
    """A folder with a task of lmms-eval over the same rows, as the hub's table of ScienceQA holds them."""
    folder, root = tmp_path_factory.mktemp("include"), unpacked("scienceqa")
    problems = json.loads((root / "problems.json").read_text())
    rows = []
    for record in records(ours / "scienceqa.jsonl"):
        problem = problems[record["id"]]
        shown = problem["image"] and str(root / "images" / problem["split"] / record["id"] / problem["image"])
        rows.append({key: problem[key] for key in ("question", "choices", "answer", "hint")} | {"image": shown})
    table = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    assert table.features["image"] == datasets.Image()
    table.to_parquet(str(folder / "test.parquet"))
    (folder / "local_scienceqa.yaml").write_text(TASK.format(table=folder / "test.parquet", cache=folder / "cache"))
    (folder / "utils.py").write_text(UTILS)
    (folder / "local_share.yaml").write_text(OF_ANOTHER_KIND)
    (folder / "group.yaml").write_text("group: local_group\ntask: [local_scienceqa]\n")
    for name, (line, _) in {"train": ("training_split: train", ""), **REFUSED}.items():
        (folder / f"{name}.yaml").write_text(f"task: local_{name}\ninclude: local_scienceqa.yaml\n{line}\n")
    return folder


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory, include: Path) -> Path:
    """The folder of lmms-eval's evaluation of its tasks."""
    out = tmp_path_factory.mktemp("theirs")
    run("--out", str(out), "--lmms_eval", "local_scienceqa,local_share", "--include_path", str(include))
    return out / "lmms_eval"


def test_scores_and_answers_are_those_of_this_package(ours: Path, theirs: Path) -> None:
    mine = json.loads((ours / "scores.json").read_text())["scienceqa"]["accuracy"]
    found = json.loads((theirs / "results.json").read_text())
    assert 0 < mine < 100
    assert found["scores"]["local_scienceqa"] == {"exact_match": pytest.approx(mine / 100)}
    answers = {one["doc_id"]: one["filtered_resps"] for one in records(theirs / "local_scienceqa.jsonl")}
    said = [record["prediction"] for record in records(ours / "scienceqa.jsonl")]
    assert [answers[i] for i in range(ROWS)] == [[text] for text in said]


def test_their_command_line_finds_the_model(include: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "mllm_lit" not in {entry.name for entry in entry_points(group="lmms_eval.models")}:
        pytest.skip("mllm_lit was installed before it had this entry point")
    from lmms_eval.models import get_model

    from mllm_lit.commands.lmms_eval import Model

    assert get_model("mllm_lit") is Model
    model = Model.create_from_arg_string("backbone=embedded", {"batch_size": 2, "device": "cpu"})
    assert (model.batch_size, model.is_simple) == (2, False)


@pytest.mark.parametrize("words", ["", "backbone=embedded,run=logs", "backbone=embedded,dtype=int3"])
def test_wrong_model_args(words: str) -> None:
    from mllm_lit.commands.lmms_eval import Model

    with pytest.raises(SettingError, match="--model_args"):
        Model.create_from_arg_string(words)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--lmms_eval", "local_scienceq"], "did you mean local_scienceqa"),
        (["--lmms_eval", "local_scienceqa", "--data", "gqa"], "leave out --data gqa"),
        (["--limit", "3"], "--limit goes with --lmms_eval"),
    ],
)
def test_wrong_words(words: list[str], told: str, include: Path, capsys: pytest.CaptureFixture[str]) -> None:
    include_path = ["--include_path", str(include)] if "--lmms_eval" in words else []
    with pytest.raises((SettingError, SystemExit)) as caught:
        run(*words, *include_path)
    assert told in f"{caught.value} {capsys.readouterr().err}"


def test_messages_are_asked_as_they_come(tiny_folder: Path) -> None:
    """Pictures between texts, several turns, and a limit that a task sets."""
    from mllm_lit.inference import load_tuned
    from mllm_lit.inference.lmms_model import Answers

    messages = [
        {"role": "user", "content": [{"type": "text", "text": "what colour is "}, {"type": "image", "url": PICTURE}]},
        {"role": "assistant", "content": [{"type": "text", "text": "red"}]},
        {"role": "user", "content": [{"type": "text", "text": "how many shapes?"}]},
    ]
    tuned = load_tuned(str(tiny_folder))
    model = Answers(tuned, batch_size=2)
    model.task_dict = {"t": {"test": [messages, messages[2:]]}}
    request = [SimpleNamespace(args=("", list, {"max_new_tokens": 3, "until": ["e"]}, i, "t", "test")) for i in (0, 1)]
    text, pictures, _ = model._read(request[0].args)
    assert text == tuned.loaded.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert pictures == [PICTURE]
    alone = [Answers(tuned, 1), Answers(tuned, 1)]
    for one in alone:
        one.task_dict = model.task_dict
    together = model.generate_until(request)
    assert together == [one.generate_until([asked])[0] for one, asked in zip(alone, request, strict=True)]
    assert all(len(tuned.loaded.processor.tokenizer(text)["input_ids"]) <= 4 for text in together)


PICTURE = Image.new("RGB", (32, 32), "red")


def short_run(output: Path, name: str, *words: str) -> list[str]:
    """The words for a short LoRA run on the embedded ScienceQA, in ``output/name/v``."""
    few = ["--data.sources", "null", "--data.max_samples", "16", "--data.max_eval_samples", "4"]
    few += ["--data.val_samples", "4", "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "1"]
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--output", str(output)]
    return ["--config", "scienceqa_lora", *few, *short, "--experiment", name, "--version", "v", *words]


def fit(output: Path, name: str, *words: str) -> Path:
    """The directory of such a run."""
    from mllm_lit.cli import main

    main(short_run(output, name, *words))
    return output / name / "v"


@pytest.mark.slow
def test_a_run_scores_its_tasks(ours: Path, include: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    words = ["--trainer.callbacks+=mllm_lit.callbacks.LmmsEval", "--trainer.callbacks.tasks=[local_scienceqa]"]
    folder = fit(tmp_path, "with", *words, f"--trainer.callbacks.include_path={include}", "--trainer.callbacks.every=2")
    summary = json.loads((folder / "summary.json").read_text())
    told = summary["lmms_eval"]
    mine = json.loads((ours / "scores.json").read_text())["scienceqa"]["accuracy"]
    assert told["before"] == {"local_scienceqa": {"exact_match": pytest.approx(mine / 100)}}
    assert [one["step"] for one in told["during"]] == [4]
    assert told["after"] == told["during"][0]["scores"], "of the same weights"
    assert len(records(folder / "lmms_eval" / "after" / "local_scienceqa.jsonl")) == ROWS
    assert "local_scienceqa" in (folder / "report.html").read_text(encoding="utf-8")

    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    logged = {event.step: event.value for event in events.Scalars("lmms_eval/local_scienceqa/exact_match")}
    assert logged == {0: pytest.approx(mine / 100), 4: pytest.approx(told["after"]["local_scienceqa"]["exact_match"])}

    without = fit(tmp_path, "without")
    assert "lmms_eval" not in json.loads((without / "summary.json").read_text())
    trained = [load_file(one / "adapter" / "adapter_model.safetensors") for one in (folder, without)]
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items()), "it disturbs nothing"


@pytest.mark.slow
def test_two_ranks_score_what_one_scores(theirs: Path, include: Path, tmp_path: Path) -> None:
    """The backbone and what came out, of a number of documents that two does not divide."""
    some = ["--trainer.callbacks+=mllm_lit.callbacks.LmmsEval", "--trainer.callbacks.tasks=[local_scienceqa]"]
    some += [f"--trainer.callbacks.include_path={include}", f"--trainer.callbacks.limit={ROWS - 1}"]
    some += ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.accelerator=cpu", "--data.batch_size=2"]
    environment = {k: v for k, v in os.environ.items() if k != "PL_GLOBAL_SEED"} | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(REPOSITORY / "tools" / "fit.py"), *short_run(tmp_path, "two", *some)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "two" / "v"
    words = ["--lmms_eval", "local_scienceqa", "--include_path", str(include), "--limit", str(ROWS - 1)]
    evaluate.main(["--run", str(folder), "--out", str(tmp_path), *words])
    told = json.loads((folder / "summary.json").read_text())["lmms_eval"]
    for phase, alone in (("before", theirs), ("after", tmp_path / "lmms_eval")):
        said = [(one["doc_id"], one["resps"], one["exact_match"]) for one in records(alone / "local_scienceqa.jsonl")]
        found = records(folder / "lmms_eval" / phase / "local_scienceqa.jsonl")
        assert sorted((one["doc_id"], one["resps"], one["exact_match"]) for one in found) == sorted(said)[: ROWS - 1]
        mean = sum(one["exact_match"] for one in found) / len(found)
        assert told[phase] == {"local_scienceqa": {"exact_match": pytest.approx(mean)}}
    assert [one["step"] for one in told["during"]] == [2, 4]
    assert told["before"] != told["after"] == told["during"][1]["scores"]


def test_an_unknown_task_is_told_before_training(include: Path, tmp_path: Path) -> None:
    words = ["--trainer.callbacks+=mllm_lit.callbacks.LmmsEval", "--trainer.callbacks.tasks=[local_scienceq]"]
    with pytest.raises(SettingError, match="did you mean local_scienceqa"):
        fit(tmp_path, "wrong", *words, f"--trainer.callbacks.include_path={include}")


@pytest.mark.parametrize("name", ["local_scienceqa", "local_share"])
def test_a_source_of_this_package_is_scored_as_they_score_it(
    name: str, include: Path, theirs: Path, tmp_path: Path
) -> None:
    words = ["--data.sources", "null", "--data.task.name", name, "--data.task.include_path", str(include)]
    run("--out", str(tmp_path), "--data", "lmms_eval", *words)
    mine = json.loads((tmp_path / "scores.json").read_text())[f"lmms_eval_{name}"]
    assert mine.pop("nll") > 0
    found = json.loads((theirs / "results.json").read_text())["scores"][name]
    assert {key: 100 * value for key, value in found.items()} == pytest.approx(mine)
    assert all(0 < value < 100 for value in mine.values())
    answers = {one["doc_id"]: one["resps"] for one in records(theirs / f"{name}.jsonl")}
    own = records(tmp_path / f"lmms_eval_{name}.jsonl")
    assert [answers[int(record["id"])] for record in own] == [[[record["prediction"]]] for record in own]
    assert {record["score"] for record in own} == ({0.0, 1.0} if name == "local_scienceqa" else {0.0, 0.25, 1.0})


def test_a_target_has_the_rows_of_the_set(include: Path, ours: Path) -> None:
    """Those of this package's own reader, here with a prompt around them."""
    from mllm_lit.data.images import load_image

    told = LmmsEval("local_train", include, prompt="{question}!")
    data = MLLMDataModule(told, train_split="train")
    assert data.root == Path()
    with pytest.raises(DatasetError, match="leave out the root"):
        _ = MLLMDataModule(told, include).root
    rows = told.rows(Path(), "training_split")
    by_id = {row.id: row for row in ScienceQA().rows(unpacked("scienceqa"), "test")}
    own = [by_id[record["id"]] for record in records(ours / "scienceqa.jsonl")]
    assert [(row.question, row.answer) for row in rows] == [(f"{row.question}!", row.answer) for row in own]
    assert any(row.images for row in rows)
    for row, other in zip(rows, own, strict=True):
        shown, expected = ([load_image(ref, "") for ref in one.images] for one in (row, other))
        assert [image.tobytes() for image in shown] == [image.tobytes() for image in expected]
    assert told.training_rows(Path(), "training_split", ["validation_split", "test_split"]) == rows
    assert told.max_new_tokens == 16


def test_a_picture_that_is_cut_short_stays_a_fault(theirs: Path) -> None:
    """lmms-eval lets PIL fill up such pictures, in the whole process."""
    assert theirs.is_dir()
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


def test_what_may_be_trained_on(include: Path) -> None:
    plain = LmmsEval("local_scienceqa", include)
    with pytest.raises(DatasetError, match=r"no training_split.*data.train_split.*there are: train, test"):
        plain.training_rows(Path(), "training_split", ["test_split"])
    assert len(plain.training_rows(Path(), "train", ["test_split"])) == ROWS
    with pytest.raises(DatasetError, match="'test', which is scored"):
        plain.training_rows(Path(), "test", ["validation_split", "test_split"])


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_with_rows(name: str, include: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)  # between lmms-eval's attempts to load something
    told = LmmsEval(f"local_{name}", include)
    with pytest.raises(UserError, match=REFUSED[name][1]):
        _score(told)


def _score(told: LmmsEval) -> float:
    rows = told.rows(Path(), "test_split")
    metric = told.metric()
    metric.update([row.answer for row in rows], rows)
    return metric.compute()[metric.headline]


def test_a_scale_says_what_points_are(include: Path) -> None:
    summed = LmmsEval("local_unscored", include, scale=0.5)
    assert _score(summed) == 0.5 * 3 * ROWS
    assert summed.metric().row_scores(["A"], summed.rows(Path(), "test_split")[:1]) == [None]
    assert _score(LmmsEval("local_scienceqa", include)) == 100
    assert _score(LmmsEval("local_scienceqa", include, scale=1)) == 1


@pytest.mark.parametrize(
    ("name", "said"),
    [(None, "is not set"), ("local_scienceq", "did you mean local_scienceqa"), ("local_group", "is a group")],
)
def test_which_task_is_meant(name: str | None, said: str, include: Path) -> None:
    with pytest.raises(SettingError, match=said):
        LmmsEval(name, include).rows(Path(), "test_split")
