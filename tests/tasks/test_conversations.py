"""One's own conversations: the layouts of other libraries, files, folders and hub ids, and splits that are drawn."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_lit.data.images import load_image
from mllm_lit.data.preflight import row_faults
from mllm_lit.data.sample import Sample
from mllm_lit.errors import SettingError
from mllm_lit.replay import replayed
from mllm_lit.reports.predictions import samples_read
from mllm_lit.sources import Source
from mllm_lit.tasks import Conversations, DatasetError
from mllm_lit.tasks.chat import read_chat
from tests.tasks.releases import picture

Q, A = {"role": "user", "content": "q1"}, {"role": "assistant", "content": "a1"}
ONE, TWO = [("user", "q1"), ("assistant", "a1")], [("user", "q2"), ("assistant", "a2")]
SYSTEM = [("system", "s")]

# Shapes are those of LLaMA-Factory's data/README.md and data/mllm_demo.json, and of ms-swift's
# docs/source_en/Customization/Custom-dataset.md; LLaVA's is that of its Finetune_Custom_Data.md.
LAYOUTS: dict[str, tuple[dict[str, Any], list[tuple[str, str]], int, str]] = {
    "LLaVA": (
        {"id": "x", "image": "a.png",
         "conversations": [{"from": "human", "value": "<image>\nq1"}, {"from": "gpt", "value": "a1"},
                           {"from": "human", "value": "q2"}, {"from": "gpt", "value": "a2"}]},
        ONE + TWO, 1, "'from' and 'value'",
    ),
    "LLaMA-Factory, sharegpt": (
        {"conversations": [{"from": "human", "value": "q1"}, {"from": "gpt", "value": "a1"}], "system": "s",
         "tools": ""},
        SYSTEM + ONE, 0, "'from' and 'value'",
    ),
    "LLaMA-Factory, multimodal image dataset": (
        {"conversations": [{"from": "human", "value": "<image>q1"}, {"from": "gpt", "value": "a1"}],
         "images": ["a.png"]},
        ONE, 1, "'from' and 'value'",
    ),
    "LLaMA-Factory, openai format, as mllm_demo.json": (
        {"messages": [{"content": "<image>q1", "role": "user"}, {"content": "a1", "role": "assistant"},
                      {"content": "q2", "role": "user"}, {"content": "a2", "role": "assistant"}],
         "images": ["a.png"]},
        ONE + TWO, 1, "'role' and 'content'",
    ),
    "LLaMA-Factory, alpaca": (
        {"instruction": "q2", "input": "i", "output": "a2", "system": "s", "history": [["q1", "a1"]]},
        [*SYSTEM, *ONE, ("user", "q2\ni"), ("assistant", "a2")], 0, "Alpaca",
    ),
    "LLaMA-Factory, alpaca with images and no marker": (
        {"instruction": "q1", "input": "", "output": "a1", "images": ["a.png"]}, ONE, 1, "Alpaca",
    ),
    "ms-swift, messages": (
        {"messages": [{"role": "system", "content": "s"}, Q, A]}, SYSTEM + ONE, 0, "'role' and 'content'",
    ),
    "ms-swift, messages with two images": (
        {"messages": [{"role": "user", "content": "<image><image>q1"}, A], "images": ["a.png", "/xxx/x.png"]},
        ONE, 2, "'role' and 'content'",
    ),
    "ms-swift, sharegpt": (
        {"system": "s", "conversation": [{"human": "q1", "assistant": "a1"}, {"human": "q2", "assistant": "a2"}]},
        SYSTEM + ONE + TWO, 0, "'human' and 'assistant'",
    ),
    "ms-swift, alpaca": (
        {"system": "s", "instruction": "q1", "input": "i", "output": "a1"},
        [*SYSTEM, ("user", "q1\ni"), ("assistant", "a1")], 0, "Alpaca",
    ),
    "ms-swift, query-response": (
        {"system": "s", "query": "q2", "response": "a2", "history": [["q1", "a1"]]}, SYSTEM + ONE + TWO, 0,
        "'query' and 'response'",
    ),
}  # fmt: skip


def write_lines(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return path


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_its_library_reads_it(name: str, tmp_path: Path) -> None:
    row, said, pictures, layout = LAYOUTS[name]
    chat = read_chat(row)
    assert [(turn.role, turn.text) for turn in chat.turns] == said
    assert layout in chat.layout
    [sample] = Conversations().rows(write_lines(tmp_path / "my.jsonl", [row]), "train")
    assert [(turn.role, turn.text) for turn in sample.turns] == said
    assert len(sample.images) == pictures
    assert sample.images[:1] == ((tmp_path / "a.png",) if pictures else ())
    assert sample.id == row.get("id", "1"), "its line, where it has no id"
    assert sample.references == (said[-1][1],)


REFUSED: list[tuple[str, dict[str, Any] | Any, str]] = [
    ("no object", [1], "expected object, got array"),
    ("no layout", {"question": "q", "answer": "a"}, r"the fields \['answer', 'question'\].*expected one of messages"),
    ("two layouts", {"messages": [Q, A], "conversations": []}, "'messages' and 'conversations'; which one"),
    ("a video", {"messages": [Q, A], "videos": ["a.mp4"]}, "field 'videos': videos are not read"),
    ("sound", {"messages": [Q, A], "audios": ["a.wav"]}, "field 'audios': audio is not read"),
    ("tools", {"messages": [Q, A], "tools": "[{}]"}, "field 'tools': calls of tools"),
    ("boxes", {"messages": [Q, A], "objects": {"bbox": [[1, 2]]}}, "field 'objects': boxes"),
    ("DPO of ms-swift", {"messages": [Q, A], "rejected_response": "no"}, "field 'rejected_response': pairs"),
    ("DPO of LLaMA-Factory", {"instruction": "q", "chosen": "a", "rejected": "b"}, "field 'chosen': pairs"),
    ("KTO of ms-swift", {"messages": [Q, A], "label": False}, "'label' is true or false: answers marked"),
    ("KTO of LLaMA-Factory", {"conversations": [], "kto_tag": True}, "field 'kto_tag': answers marked"),
    ("a result of a tool", {"messages": [Q, {"role": "tool", "content": "x"}]}, r"\$.messages\[1\] is of 'tool', expe"),
    ("a call of a tool", {"messages": [Q, A | {"tool_calls": [{}]}]}, r"\$.messages\[1\] has 'tool_calls'"),
    ("an answer without loss", {"messages": [Q, A | {"loss": False}]}, r"\$.messages\[1\] has 'loss': false"),
    ("nothing asked", {"messages": [A]}, r"turns from \['assistant'\], expected human and gpt in turn"),
    ("nothing answered", {"messages": [Q]}, r"turns from \['user'\], expected human and gpt in turn"),
    ("no turns", {"messages": []}, r"\$.messages: expected array of length >= 1"),
    ("turns of no shape", {"messages": [{"user": "q"}]}, r"the first turn has \['user'\], expected turns with 'from'"),
    ("a number", {"messages": [Q, {"role": "assistant", "content": 7}]}, r"\$.messages\[1\].content: expected str"),
    ("a blank answer", {"query": "q", "response": " "}, r"\$.response: expected text that is not blank"),
    ("a lost picture", {"messages": [{"role": "user", "content": "<image>q"}, A]}, "1 <image> markers for 0 images"),
    ("a picture too many", {"query": "<image>q", "response": "a", "images": ["a", "b"]}, "1 <image> markers for 2"),
    ("a picture in an answer", {"query": "q", "response": "<image>", "images": ["a"]}, "assistant holds <image>"),
    ("two lists of pictures", {"query": "q", "response": "a", "images": ["a"], "image": "b"}, "'image' and 'images'"),
    ("a picture elsewhere", {"query": "q", "response": "a", "images": ["https://a/b.png"]}, "https.*download it"),
    ("no picture", {"query": "q", "response": "a", "images": [{}]}, "'images' holds an object with .*expected a path"),
    ("two system prompts", {"system": "s", "messages": [{"role": "system", "content": "t"}, Q, A]}, "two system pro"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), [one[1:] for one in REFUSED], ids=[one[0] for one in REFUSED])
def test_what_cannot_be_read_is_refused_by_line(row: Any, message: str, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.jsonl", [{"messages": [Q, A]}, row, row])
    with pytest.raises(DatasetError, match=message) as caught:
        Conversations().rows(path, "train")
    assert [(fault.file, fault.row) for fault in caught.value.faults] == [(str(path), "2"), (str(path), "3")]


def test_broken_lines_are_named_by_number_and_an_odd_file_as_a_whole(tmp_path: Path) -> None:
    good = json.dumps({"messages": [Q, A]})
    path = tmp_path / "my.jsonl"
    path.write_text(f'{good}\n\n{{"messages"\n{good[:-1]}, "messages": 1}}\n')
    with pytest.raises(DatasetError, match=r"jsonl:3: column 12: not valid JSON(.|\n)*jsonl:4: .*'messages' more"):
        Conversations().rows(path, "train")
    path.write_text(json.dumps({"messages": [Q, A]}, indent=1))
    with pytest.raises(DatasetError, match="neither a list of rows nor a row a line; line 1"):
        Conversations().rows(path, "train")
    path.write_text("[" + good + ",")
    with pytest.raises(DatasetError, match="line 1, column"):
        Conversations().rows(path, "train")
    with pytest.raises(DatasetError, match="is a .csv, expected .jsonl, .json, .parquet"):
        Conversations().rows(write_lines(tmp_path / "my.csv", []), "train")


def test_a_separator_of_lines_within_a_text_ends_no_row(tmp_path: Path) -> None:
    row = {"messages": [Q, A | {"content": "one\u2028two"}]}
    path = tmp_path / "my.jsonl"
    path.write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")
    assert Conversations().rows(path, "train")[0].answer == "one\u2028two"


def test_a_list_in_a_jsonl_and_lines_in_a_json_are_read(tmp_path: Path) -> None:
    rows = [{"messages": [Q, A]}] * 2
    (tmp_path / "my.jsonl").write_text(json.dumps(rows))
    assert [row.id for row in Conversations().rows(tmp_path / "my.jsonl", "train")] == ["0", "1"]
    write_lines(tmp_path / "my.json", rows)
    assert [row.id for row in Conversations().rows(tmp_path / "my.json", "train")] == ["1", "2"]


def test_pictures_are_looked_for_beside_the_file_or_where_it_is_said(tmp_path: Path) -> None:
    picture(tmp_path / "pics" / "a.png")
    path = write_lines(tmp_path / "my.jsonl", [{"query": "q", "response": "a", "image": "a.png"}])
    assert "my.jsonl" in row_faults(Conversations().rows(path, "train"))[0].file
    for folder in ("pics", str(tmp_path / "pics")):
        [row] = Conversations(images=folder).rows(path, "train")
        assert row_faults([row]) == []


def many(count: int, prefix: str = "r") -> list[dict[str, Any]]:
    return [{"id": f"{prefix}{i}", "messages": [Q, A]} for i in range(count)]


def ids(rows: list[Sample]) -> list[str]:
    return [row.id for row in rows]


def test_splits_that_are_not_there_are_drawn_with_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "my.jsonl", many(200))
    task = Conversations()
    val, test = (ids(task.rows(path, split)) for split in ("val", "test"))
    rest = ids(task.training_rows(path, "train", ("val", "test")))
    assert (len(val), len(test)) == (10, 10), "a twentieth"
    assert sorted(val + test + rest) == sorted(f"r{i}" for i in range(200)), "each row is in one part"
    again = Conversations()
    assert (ids(again.rows(path, "val")), ids(again.rows(path, "test"))) == (val, test)
    told = str(task.drawn(path, ("val", "test")))
    assert "of its 200 rows 10 for val and 10 for test are drawn with seed 42" in told
    assert "\n" not in told
    # Where only one of them is scored, the other one is trained on, and it is the same one.
    assert ids(task.training_rows(path, "train", ("test",))) == [
        r for r in ids(task.rows(path, "train")) if r not in test
    ]
    monkeypatch.setenv("PL_GLOBAL_SEED", "43")
    assert ids(Conversations().rows(path, "test")) != test


@pytest.mark.parametrize(
    ("sizes", "counts"),
    [({"val_size": 0.25, "test_size": 3}, (5, 3)), ({"val_size": 0, "test_size": 1}, (0, 1)), ({}, (1, 1))],
)
def test_shares_and_counts(sizes: dict[str, float], counts: tuple[int, int], tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.jsonl", many(20))
    task = Conversations(**sizes)  # type: ignore[arg-type]
    for split, count in zip(("val", "test"), counts, strict=True):
        if count:
            assert len(task.rows(path, split)) == count
        else:
            with pytest.raises(DatasetError, match=f"no split '{split}'; there are: test, train"):
                task.rows(path, split)
    assert len(task.training_rows(path, "train", ("val", "test"))) == 20 - sum(counts)


def test_sizes_that_leave_nothing_or_mean_nothing_are_refused(tmp_path: Path) -> None:
    path = write_lines(tmp_path / "my.jsonl", many(4))
    with pytest.raises(DatasetError, match="1 for val and 3 for test would be drawn, but there are 4 rows"):
        Conversations(test_size=3).training_rows(path, "train", ("val", "test"))
    with pytest.raises(SettingError, match="test_size is 1.5; expected a share below 1, or a whole number"):
        Conversations(test_size=1.5)
    with pytest.raises(SettingError, match=r"columns maps \['question'\]; what can be mapped is conversation"):
        Conversations(columns={"question": "q"})


def test_a_report_reads_the_rows_that_were_drawn_in_its_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_lines(tmp_path / "my.jsonl", many(40))
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    test = ids(Conversations().rows(path, "test"))
    monkeypatch.delenv("PL_GLOBAL_SEED")
    task = {"class_path": "mllm_lit.tasks.Conversations", "init_args": {}}
    data = {"class_path": "mllm_lit.data.VQADataModule", "init_args": {"task": task, "root": str(path)}}
    samples = samples_read({"seed_everything": 7, "data": data}, tmp_path / "config.yaml")
    assert list(samples("conversations")) == test


def test_a_folder_has_a_file_a_split_and_what_it_has_is_not_drawn(tmp_path: Path) -> None:
    write_lines(tmp_path / "train.jsonl", many(40))
    write_lines(tmp_path / "validation.jsonl", many(2, "v"))
    task = Conversations()
    assert ids(task.rows(tmp_path, "val")) == ["v0", "v1"]
    test = ids(task.rows(tmp_path, "test"))
    assert len(test) == 2
    # As configs/sequences have it: val is scored on what is there, so all rows are trained on.
    assert len(task.training_rows(tmp_path, "train", ("validation",))) == 40
    assert len(task.training_rows(tmp_path, "train", ("val", "test"))) == 38
    assert task.drawn(tmp_path, ("validation",)) is None
    rows = replayed({"mine": Source(task, tmp_path)}, 1.0, 38, 0)["mine"]
    assert not {row.id for row in rows} & {f"mine/{name}" for name in test}, "what is scored is never replayed"
    write_lines(tmp_path / "dev.jsonl", many(2, "d"))
    with pytest.raises(DatasetError, match="validation and dev could each be the split 'val'"):
        task.rows(tmp_path, "val")
    write_lines(tmp_path / "train.json", many(1))
    with pytest.raises(DatasetError, match="train.json, train.jsonl could each be the split 'train'"):
        task.rows(tmp_path, "train")


def test_a_part_of_the_training_rows_under_another_name_is_not_scored_on_drawn_ones(tmp_path: Path) -> None:
    for name in ("train", "small"):
        write_lines(tmp_path / f"{name}.jsonl", many(40))
    with pytest.raises(DatasetError, match="no split test, which would be drawn from 'train', but 'small' is trained"):
        Conversations().training_rows(tmp_path, "small", ("test",))


def test_the_only_file_of_a_folder_is_the_training_split(tmp_path: Path) -> None:
    write_lines(tmp_path / "whatever.jsonl", many(40))
    (tmp_path / "dataset_info.json").write_text("{}")
    assert len(Conversations().rows(tmp_path, "train")) == 40


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "png")
    return buffer.getvalue()


def test_a_table_and_a_data_set_of_the_hub_with_columns_of_other_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder in the hub's layout has the place of an id: nothing here reaches the hub."""
    datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")
    features = datasets.Features(
        {
            "dialogue": [{"role": datasets.Value("string"), "content": datasets.Value("string")}],
            "pictures": [datasets.Image()],
        }
    )
    cell = {"bytes": png(), "path": None}
    rows = {"dialogue": [[{"role": "user", "content": "<image>q1"}, A], [Q, A]], "pictures": [[cell], []]}
    for split in ("train", "validation"):
        path = tmp_path / f"some/one/data/{split}-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        datasets.Dataset.from_dict(rows, features=features).to_parquet(path)
    task = Conversations(columns={"messages": "dialogue", "images": "pictures"})
    monkeypatch.chdir(tmp_path)
    places = [(tmp_path / "some/one/data/train-00000-of-00001.parquet", "train"), (tmp_path / "some/one", "val")]
    for root, split in [*places, (Source(task, "hf://some/one").root, "val")]:
        one, two = task.rows(root, split)
        assert (one.question, one.answer, two.images) == ("q1", "a1", ())
        assert load_image(one.images[0], one.origin).size == (4, 3)
    with pytest.raises(DatasetError, match=r"task.columns names \['dialog'\]; the fields are dialogue, pictures"):
        Conversations(columns={"messages": "dialog"}).rows(tmp_path / "some/one", "train")
    with pytest.raises(DatasetError, match=r"row has the fields \['dialogue', 'pictures'\].*say so by task.columns"):
        Conversations().rows(tmp_path / "some/one", "train")
    with pytest.raises(DatasetError, match="there is no file or folder 'no/where'.*Hugging Face hub it could not be"):
        task.rows(Source(task, "no/where").root, "train")


def test_a_table_of_bytes(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")
    columns = {"query": ["q1"], "response": ["a1"], "images": [[png()]]}
    datasets.Dataset.from_dict(columns).to_parquet(tmp_path / "my.parquet")
    [row] = Conversations().rows(tmp_path / "my.parquet", "train")
    assert load_image(row.images[0], row.origin).size == (4, 3)
