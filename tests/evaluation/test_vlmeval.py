"""The file of answers that VLMEvalKit's scorers take."""

import base64
import csv
import io
from pathlib import Path

import pytest
from PIL import Image

from mllm_lit.commands import evaluate
from mllm_lit.data.faults import DatasetError
from mllm_lit.inference import Conversation, load_tuned
from mllm_lit.inference.vlmeval import answer, content_of, pictures_of, read_rows, text_of


def encoded(colour: str) -> str:
    file = io.BytesIO()
    Image.new("RGB", (32, 32), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with options, a hint, a picture that is another row's, and a row without one."""
    path = tmp_path_factory.mktemp("LMUData") / "Colours.tsv"
    columns = ["index", "image", "question", "hint", "A", "B", "C", "answer", "category"]
    rows = [
        ["0", encoded("red"), "what colour is the square?", "", "red", "blue", "", "A", "colour"],
        ["1", "0", "is it blue?", "look twice", "yes", "no", "left", "B", "colour"],
        ["2", "", "no picture", "", "yes", "no", "", "A", "colour"],
    ]
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter="\t").writerows([columns, *rows])
    return path


def test_the_file_has_the_columns_that_are_scored(table: Path, tiny_folder: Path, tmp_path: Path) -> None:
    evaluate.main(["--backbone", str(tiny_folder), "--vlmeval", str(table), "--out", str(tmp_path)])
    pandas = pytest.importorskip("pandas")
    found = pandas.read_csv(tmp_path / "mllm_lit_Colours.tsv", sep="\t")  # as vlmeval.smp.load reads it
    assert [*found] == ["index", "question", "hint", "A", "B", "C", "answer", "category", "prediction"]
    assert found["index"].tolist() == [0, 1]
    given = pandas.read_csv(table, sep="\t").drop(columns="image")[:2]
    pandas.testing.assert_frame_equal(found.drop(columns="prediction"), given, check_dtype=False)


def test_answers_are_those_to_its_prompt(table: Path, tiny_folder: Path, tmp_path: Path) -> None:
    # Alone, for this model says so little for sure that padding changes its long answers.
    tuned = load_tuned(str(tiny_folder))
    answer(tuned, table, tmp_path, batch_size=1)
    with (tmp_path / "mllm_lit_Colours.tsv").open(newline="") as file:
        said = [row["prediction"] for row in csv.DictReader(file, delimiter="\t")]
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    # ImageMCQDataset.build_prompt, written out.
    asked = (
        "Question: what colour is the square?\nOptions:\nA. red\nB. blue\n"
        "Please select the correct answer from the options above. \n",
        "Hint: look twice\nQuestion: is it blue?\nOptions:\nA. yes\nB. no\nC. left\n"
        "Please select the correct answer from the options above. \n",
    )
    assert said == [Conversation(tuned, [tmp_path / "red.png"]).ask(text, 512) for text in asked]


def test_questions_without_options() -> None:
    row = {"index": "0", "question": "how many?", "A": "nan"}
    assert text_of(row, "MME") == "how many?"
    assert text_of(row, "ChartQA_TEST") == "how many?\nAnswer the question using a single word or phrase."


def test_pictures_of_mmmu_stand_where_its_text_names_them() -> None:
    content = [*content_of("Is <image 2> like <image 1>?", ["one", "two"], "MMMU_DEV_VAL")]
    assert [part.get("text", part.get("url")) for part in content] == ["Is ", "two", " like ", "one", "?"]
    content = [*content_of("Is it?", ["one", "two"], "MMMU_DEV_VAL")]
    assert [part["type"] for part in content] == ["image", "image", "text"]


def test_files_and_lists_of_pictures(tmp_path: Path) -> None:
    assert pictures_of({"image_path": "['a.png', 'b.png']"}, {}, tmp_path) == [tmp_path / "a.png", tmp_path / "b.png"]
    row = {"index": "7", "image": str([encoded("red"), encoded("blue")])}
    assert [one.name for one in pictures_of(row, {}, tmp_path)] == ["7-0", "7-1"]


def test_wrong_files_and_words(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DatasetError, match="no file"):
        read_rows(tmp_path / "none.tsv")
    (tmp_path / "other.tsv").write_text("index\ttext\n1\ta\n")
    with pytest.raises(DatasetError, match="no column question; there are: index, text"):
        read_rows(tmp_path / "other.tsv")
    for words, told in (
        (["--vlmeval", str(table), "--limit", "3"], "--limit goes with --lmms_eval"),
        (["--vlmeval", str(table), "--data", "gqa"], "leave out --data gqa"),
        (["--batch_size", "3"], "--batch_size goes with"),
    ):
        with pytest.raises(SystemExit):
            evaluate.main(["--backbone", "embedded", *words])
        assert told in capsys.readouterr().err
