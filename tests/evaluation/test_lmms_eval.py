"""lmms-eval asks and scores a model of ours as this package does."""

import json
from importlib.metadata import entry_points
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from mllm_lit.commands import evaluate
from mllm_lit.errors import SettingError
from mllm_lit.tasks.embedded_data import unpacked

datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")
why = "the optional package 'lmms-eval', or what its evaluator imports, is not installed"
pytest.importorskip("lmms_eval.evaluator", reason=why, exc_type=ImportError)

ROWS = 24
TASK = """
task: local_scienceqa
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {table}
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
"""


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
    return folder


def test_scores_and_answers_are_those_of_this_package(ours: Path, include: Path, tmp_path: Path) -> None:
    run("--out", str(tmp_path), "--lmms_eval", "local_scienceqa", "--include_path", str(include))
    mine = json.loads((ours / "scores.json").read_text())["scienceqa"]["accuracy"]
    found = json.loads((tmp_path / "lmms_eval" / "results.json").read_text())
    assert 0 < mine < 100
    assert found["scores"] == {"local_scienceqa": {"exact_match": pytest.approx(mine / 100)}}
    theirs = {one["doc_id"]: one["filtered_resps"] for one in records(tmp_path / "lmms_eval" / "local_scienceqa.jsonl")}
    said = [record["prediction"] for record in records(ours / "scienceqa.jsonl")]
    assert [theirs[i] for i in range(ROWS)] == [[text] for text in said]


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


def fit(output: Path, name: str, *words: str) -> Path:
    """The directory of a short LoRA run on the embedded ScienceQA."""
    from mllm_lit.cli import main

    few = ["--data.sources", "null", "--data.max_samples", "16", "--data.max_eval_samples", "4"]
    few += ["--data.val_samples", "4", "--data.batch_size", "4", "--trainer.accumulate_grad_batches", "1"]
    short = ["--trainer.max_steps", "4", "--trainer.val_check_interval", "2", "--output", str(output)]
    main(["--config", "scienceqa_lora", *few, *short, "--experiment", name, "--version", "v", *words])
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


def test_an_unknown_task_is_told_before_training(include: Path, tmp_path: Path) -> None:
    words = ["--trainer.callbacks+=mllm_lit.callbacks.LmmsEval", "--trainer.callbacks.tasks=[local_scienceq]"]
    with pytest.raises(SettingError, match="did you mean local_scienceqa"):
        fit(tmp_path, "wrong", *words, f"--trainer.callbacks.include_path={include}")
