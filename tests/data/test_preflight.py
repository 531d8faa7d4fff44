"""Faults are found before the first step, all of them, under file and row."""

from pathlib import Path

import pytest

from mllm_lit.data.preflight import check, check_images, check_rows
from mllm_lit.data.sample import EncodedImage, Sample
from mllm_lit.tasks import DatasetError
from tests.tasks.releases import picture


def _row(name: str, **changes: object) -> Sample:
    fields: dict[str, object] = {"question": "?", "answer": "x", "references": ("x",), "origin": f"data.json:{name}"}
    return Sample.single_turn(id=name, **(fields | changes))  # type: ignore[arg-type]


def test_sound_rows_pass(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    rows = [_row("1", images=(tmp_path / "a.png",)), _row("2")]
    check_rows(rows, "train")
    check_images(rows)
    assert check({"train": rows}) == []


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([_row("1"), _row("1", origin="data.json:7")], r"data.json:7: id '1' is also that of data.json:1"),
        ([_row("1", question=" ")], "data.json:1: the question is empty"),
        ([_row("1", answer="")], "data.json:1: the answer is empty"),
        ([_row("1", references=())], "data.json:1: there is no reference"),
        ([_row("1", references=(" ",))], "data.json:1: there is no reference"),
        ([_row("1", images=(Path("none.jpg"),))], "data.json:1: image none.jpg cannot be read: No such file"),
        ([_row("1", images=(EncodedImage(b"", "t:1"),))], r"data.json:1: image t:1 is empty \(0 bytes\)"),
        ([], "train: there is not a single row"),
    ],
)
def test_fault_is_named(rows: list[Sample], message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        check_rows(rows, "train")


def test_empty_picture_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").touch()
    with pytest.raises(DatasetError, match=r"a.jpg is empty \(0 bytes\)"):
        check_rows([_row("1", images=(tmp_path / "a.jpg",))], "train")


def test_all_faults_are_reported_and_the_message_stays_short() -> None:
    with pytest.raises(DatasetError, match=r"30 faulty rows(.|\n)*and 10 more; tools/check_data.py") as caught:
        check_rows([_row(str(i), answer="") for i in range(30)], "train")
    assert [fault.row for fault in caught.value.faults] == [str(i) for i in range(30)]


def test_full_check_decodes_every_picture_once(tmp_path: Path) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    images = [("1", "good.png"), ("2", "bad.png"), ("3", "bad.png"), ("4", "none.png")]
    rows = [_row(name, images=(tmp_path / image,)) for name, image in images]
    with pytest.raises(DatasetError, match="2 faulty rows"):
        check_images(rows)
    faults = check({"train": [*rows, _row("5", answer="")], "test": []})
    assert [(fault.file, fault.row) for fault in faults] == [
        ("test", ""),
        ("data.json", "5"),
        ("data.json", "2"),
        ("data.json", "4"),
    ]
    assert "no known picture format" in faults[2].reason
    assert str(faults[0]) == "test: there is not a single row"
