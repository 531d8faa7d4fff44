"""What a model sees of a sample: by tools/check_data.py, and by --show_batch ahead of a run."""

import json
import re
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mllm_lit.backbones import Backbone
from mllm_lit.cli import build
from mllm_lit.data.collate import Collate
from mllm_lit.data.packed import PackedCollate
from mllm_lit.data.sample import Sample, Turn
from mllm_lit.data.show import shown, views
from mllm_lit.studies.identity import facts
from mllm_lit.studies.plan import key_of
from tests.conftest import REPOSITORY
from tests.tasks.releases import picture
from tests.tasks.test_conversations import write_lines

TURNS = (Turn("system", "Be brief."), Turn("user", "What is it?"), Turn("assistant", "A square."))
TURNS += (Turn("user", "Which colour?"), Turn("assistant", "Red."))
WORDS = ["--model.backbone", str(REPOSITORY / "configs/backbones/embedded.yaml")]
WORDS += ["--model.adapter", str(REPOSITORY / "configs/adapters/small_lora.yaml"), "--trainer.logger", "false"]


@pytest.fixture(scope="module")
def collate() -> Collate:
    return Collate(*Backbone("embedded").load_processor())


def test_the_processor_and_limit_are_those_of_the_loaded_model(collate: Collate) -> None:
    from mllm_lit.backbones.load import context

    loaded = Backbone("embedded").load()
    assert collate.max_length == context(loaded)
    assert repr(loaded.processor) == repr(collate.processor)
    assert Backbone("embedded", max_length=77).load_processor()[1] == 77


def test_a_view_has_the_chat_the_labels_and_the_picture(collate: Collate, files: list[Path]) -> None:
    sample = Sample("one", TURNS, (files[1],), ("Red.",), origin="my.jsonl:1")
    (view,) = views(collate([sample]), collate)
    about, counts, text = view.split("\n", 2)
    assert about == "one (my.jsonl:1): 1.png 64 x 32", "width x height, as the file has it"
    # The processor's own text, its picture's marker replaced; docs/embedded.md: a picture is 16 tokens.
    messages: list[dict[str, Any]] = [{"role": t.role, "content": [{"type": "text", "text": t.text}]} for t in TURNS]
    messages[1]["content"].insert(0, {"type": "image"})
    theirs = collate.processor.apply_chat_template(messages, tokenize=False)
    plain = text.replace("⟦", "").replace("⟧", "").replace("<16 image tokens>", collate.processor.image_token)
    assert plain.split() == theirs.split()
    assert [part.strip() for part in re.findall(r"⟦(.*?)⟧", text)] == ["A square.</s>", "Red.</s>"]
    messages[1]["content"][0]["path"] = str(files[1])
    encoded = collate.processor.apply_chat_template([messages], tokenize=True, return_dict=True)["input_ids"][0]
    assert re.fullmatch(rf"{len(encoded)} tokens, of them 16 of pictures and \d+ labelled", counts)


def test_packed_rows_are_shown_as_they_lie(collate: Collate, files: list[Path]) -> None:
    rows = [Sample(str(i), TURNS[1:3], (files[0],), ("A square.",), origin=f"m:{i}") for i in range(3)]
    (view,) = views(PackedCollate(collate, share=True, pack=False)(rows), collate)
    assert view.splitlines()[0].count("(m:") == 3
    assert view.count("<16 image tokens>") == 1
    assert view.count("⟦") == 3


def test_samples_are_taken_from_all_over_and_no_more_than_there_are(files: list[Path]) -> None:
    rows = [Sample(str(i), TURNS[1:3], (), ("A square.",), origin=f"m:{i}") for i in range(10)]
    told = "".join(shown(rows, 2, Backbone("embedded")))
    assert re.findall(r"\(m:(\d)\): no picture", told) == ["0", "5"]
    assert "as embedded sees them" in told
    assert "".join(shown(rows[:1], 5, Backbone("embedded"))).count("(m:") == 1


def own(tmp_path: Path, count: int = 24) -> Path:
    picture(tmp_path / "a.png")
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"<image>{i}?"}, {"role": "assistant", "content": f"red {i}"}],
         "images": ["a.png"], "note": "n"} for i in range(count)
    ]  # fmt: skip
    rows[4]["messages"][0]["content"] = "4, <image>?"
    rows[5] = {"query": "q", "response": "a"}
    return write_lines(tmp_path / "my.jsonl", rows)


def check(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["check_data.py", *words])
    code: int = runpy.run_path(str(REPOSITORY / "tools" / "check_data.py"))["main"]()
    return code


def test_check_data_says_what_ones_own_data_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path)
    assert check(monkeypatch, str(path), "--show", "3", "--data.task.val_size", "5") == 0
    out = capsys.readouterr().out
    for line in (
        f"{path}: 24 rows, the split 'train'",
        "  layout: 'messages', turns with 'role' and 'content' (LLaMA-Factory's openai format; ms-swift's messages): "
        "23 rows",
        "  layout: 'query' and 'response' (ms-swift's query-response): 1 row",
        "  pictures a row: 0 (1 row), 1 (23 rows)",
        "  <image> markers behind a text: 1 row; pictures come ahead of the first question's text all the same",
        "  field 'note' is not read: 23 rows",
        "0 faults in 24 rows: train 24",
    ):
        assert f"{line}\n" in out
    assert "of its 24 rows 5 for val and 1 for test are drawn with seed 42" in out
    assert [int(i) for i in re.findall(r"my.jsonl:(\d+)\): a.png 4 x 3", out)] == [1, 9, 17]
    assert out.count("⟦ red ") == 3


def test_check_data_lists_faults_by_line_and_shows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = own(tmp_path)
    with path.open("a") as file:
        file.write(json.dumps({"messages": []}) + "\n")
    assert check(monkeypatch, str(path), "--show", "3") == 1
    out = capsys.readouterr().out
    assert "  layout: none that can be read: 1 row; see the faults\n" in out
    assert f"{path}:25: $.messages: expected array of length >= 1" in out
    assert out.endswith("no sample is shown while there are faults\n")


def test_a_task_has_one_word_and_options_that_are_new_leave_keys_alone(tmp_path: Path) -> None:
    path = own(tmp_path)
    data = build(None, [*WORDS, "--data.task", "conversations", "--data.root", str(path)]).data
    assert type(data.task).__name__ == "Conversations"
    data.setup("fit")
    assert (len(data.train_rows), *(len(data.sets[phase][0].samples) for phase in ("val", "test"))) == (22, 1, 1)
    assert data.sampled.keys() == {"train", "val/conversations", "test/conversations"}, "kept in ids/"
    by_class = ["--data", str(REPOSITORY / "configs/tasks/conversations.yaml")]
    told = facts([*WORDS, *by_class])
    assert told["settings"]["data.task"] == "mllm_lit.tasks.Conversations"
    settings = {name: value for name, value in told["settings"].items() if value != "None"}
    named = {name for name in settings if name.startswith("data.task.")}
    assert named == {"data.task.images", "data.task.score", "data.task.max_new_tokens"}, "the others are off"
    assert key_of(told) == key_of(facts([*WORDS, *by_class, "--show_batch", "--data.task", "conversations"]))


@pytest.mark.parametrize("path", ["Qwen/Qwen2.5-VL-7B-Instruct", "embedded", "embedded + mlp2x_gelu + embedded"])
@pytest.mark.filterwarnings("error")
def test_embedded_sets_are_warned_of_once_where_the_model_is_none_of_them(path: str, tmp_path: Path) -> None:
    words = ["--data.task", "conversations", "--data.root", str(own(tmp_path))]
    data: Any = build(None, [*WORDS, *words, "--data.sources", str(REPOSITORY / "configs/sources/embedded.yaml")]).data
    module = SimpleNamespace(backbone=Backbone(path))
    data.trainer = SimpleNamespace(lightning_module=module, is_global_zero=True)
    if path.startswith("embedded"):
        data.setup("test")
        return
    told = f"captions, vqa, gqa are the small emoji sets .* about {path}. Set --data.sources .*or null"
    with pytest.warns(UserWarning, match=told) as caught:
        data.setup("test")
    assert len(str(caught[0].message).splitlines()) == 1
    data.setup("validate")  # an error, if it were said again


@pytest.mark.slow
def test_a_run_shows_its_first_batch_and_is_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mllm_lit.cli import main

    monkeypatch.setattr(sys, "argv", ["fit.py"])
    words = ["--config", str(REPOSITORY / "configs/scienceqa_lora.yaml"), "--data.sources", "null"]
    words += ["--data.task", "conversations", "--data.root", str(own(tmp_path)), "--output", str(tmp_path / "logs")]
    words += ["--trainer.max_steps", "2", "--trainer.limit_test_batches", "1", "--data.batch_size", "4"]
    words += ["--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.logger", "false"]
    found = []
    for version, more in (("shown", ["--show_batch"]), ("silent", [])):
        main([*words, "--version", version, *more])
        summary = json.loads((tmp_path / "logs/scienceqa_lora" / version / "summary.json").read_text())
        found.append(summary["target"])
        out = capsys.readouterr().out
        assert out.count("The first batch: 4 rows in 4 sequences.") == bool(more)
        assert out.count("⟦") == (1 + 3 if more else 0), "the legend's, and three rows"
    assert found[0] == found[1]
