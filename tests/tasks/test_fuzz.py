"""Faults at random, with a fixed seed: each is harmless, or named by file, place and reason before anything is trained.

``benchmarks/fuzz_readers.py`` tries ten thousand.
"""

from collections import Counter
from pathlib import Path

import pytest

from mllm_lit.tasks import GQA, OCRVQA, COCOCaptions, HuggingFace, VQAv2
from mllm_lit.tasks.base import DatasetError
from tests.tasks.faults import READERS, fuzz, table
from tests.tasks.releases import RELEASES, write


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_every_fault_is_harmless_or_named(seed: int, tmp_path: Path) -> None:
    outcomes = list(fuzz(seed, 300, tmp_path))
    wrong = [(name, outcome) for name, outcome in outcomes if outcome.kind not in ("harmless", "named")]
    assert wrong == []
    kinds = Counter(outcome.kind for _, outcome in outcomes)
    assert kinds["named"] > 80, "the faults do some harm"
    assert {name for name, _ in outcomes} == {task.name for task, _ in READERS}


def test_a_fault_names_path_expected_and_found(tmp_path: Path) -> None:
    RELEASES["vqav2"](tmp_path)
    questions = [{"image_id": 9, "question": "?", "question_id": i} for i in (9000, 9001, [9002])]
    write(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", {"questions": questions})
    told = r"questions.json:questions\[2\]: \$.question_id: expected int | str, got array"
    with pytest.raises(DatasetError, match=told.replace("|", r"\|")):
        VQAv2().rows(tmp_path, "val2014")


@pytest.mark.parametrize("split", ["1", None, 4])
def test_a_book_of_an_unknown_split_does_not_vanish(split: object, tmp_path: Path) -> None:
    RELEASES["ocrvqa"](tmp_path)
    books = {"b": {"imageURL": "a.jpg", "questions": ["?"], "answers": ["!"], "split": split}}
    write(tmp_path / "dataset.json", books)
    with pytest.raises(DatasetError, match=r"dataset.json:b: \$.split: (expected int, got|invalid enum value 4)"):
        OCRVQA().rows(tmp_path, "test")


@pytest.mark.parametrize("split", ["Train ", None])
def test_a_picture_of_an_unknown_split_does_not_vanish(split: object, tmp_path: Path) -> None:
    RELEASES["coco_captions"](tmp_path)
    image = {"filename": "a.jpg", "sentences": [{"raw": "red"}], "imgid": 1} | (
        {} if split is None else {"split": split}
    )
    write(tmp_path / "dataset_coco.json", {"images": [image]})
    with pytest.raises(DatasetError, match=r"dataset_coco.json:images\[0\]: .*(invalid enum value|missing required)"):
        COCOCaptions(splits="karpathy").rows(tmp_path, "test")


def test_a_compressed_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    RELEASES["gqa"](tmp_path)
    path = tmp_path / "questions1.2/testdev_balanced_questions.json"
    path.write_bytes(b"\x1f\x8b" + path.read_bytes())
    with pytest.raises(DatasetError, match=r"questions.json is compressed \(gzip\)"):
        GQA().rows(tmp_path, "testdev_balanced")


def test_shards_of_other_columns_are_named(tmp_path: Path) -> None:
    import datasets

    table(tmp_path)
    last = tmp_path / "train-00001-of-00002.parquet"
    other = datasets.Dataset.from_parquet(str(last)).to_dict() | {"answer": ["x", "y"]}
    datasets.Dataset.from_dict(other).to_parquet(str(last))
    told = "00001-of-00002.parquet and .*00000-of-00002.parquet are no shards of one table.*answer: int64 and string"
    with pytest.raises(DatasetError, match=told):
        HuggingFace(choices="choices", id="id").rows(tmp_path, "train")
    last.write_bytes(last.read_bytes()[:100])
    with pytest.raises(DatasetError, match="00001-of-00002.parquet is no complete parquet file"):
        HuggingFace(choices="choices", id="id").rows(tmp_path, "train")
