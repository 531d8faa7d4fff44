"""Parquet tables with a mapping of columns (needs the optional ``datasets`` package)."""

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mllm_lit.data.images import load_image
from mllm_lit.data.preflight import row_faults
from mllm_lit.tasks import DatasetError, HuggingFace

datasets = pytest.importorskip("datasets", reason="the optional package 'datasets' is not installed")


def _png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "png")
    return buffer.getvalue()


def _save(path: Path, columns: dict[str, list[Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_dict(columns).to_parquet(path)


def test_shards_of_the_hub_layout_with_choices(tmp_path: Path) -> None:
    cell = {"bytes": _png(), "path": None}
    for shard in range(2):
        columns = {"q": ["Which?"], "a": [1], "options": [["cat", "dog"]], "picture": [cell], "key": [f"k{shard}"]}
        _save(tmp_path / f"data/test-{shard:05}-of-00002.parquet", columns)
    task = HuggingFace(question="q", answer="a", image="picture", choices="options", id="key", score="choice")
    samples = task.rows(tmp_path, "test")
    assert [(s.id, s.question, s.answer) for s in samples] == [(f"k{i}", "Which? A.cat, B.dog", "B") for i in range(2)]
    assert load_image(samples[0].images[0], samples[0].origin).size == (4, 3)
    assert row_faults(samples) == []
    metric = task.metric()
    metric.update(["B", "A"], samples)
    assert metric.compute()["accuracy"] == 50


def test_declared_images_and_lists_of_answers(tmp_path: Path) -> None:
    features = datasets.Features(
        {"question": datasets.Value("string"), "answer": [datasets.Value("string")], "image": datasets.Image()}
    )
    rows = {"question": ["What?"], "answer": [["red", "blue", "red"]], "image": [{"bytes": _png(), "path": None}]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / "train.parquet")
    [sample] = HuggingFace(score="vqa").rows(tmp_path, "train")
    assert (sample.id, sample.answer, sample.references) == ("0", "red", ("red", "blue", "red"))
    assert load_image(sample.images[0], sample.origin).getpixel((0, 0)) == (255, 0, 0)


def test_paths_and_text_only_rows(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(_png())
    _save(tmp_path / "train.parquet", {"question": ["a?", "b?"], "answer": ["x", "y"], "image": ["a.png", None]})
    one, two = HuggingFace().rows(tmp_path, "train")
    assert one.images == (tmp_path / "a.png",)
    assert two.images == ()


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"huggingface: .* train.parquet or data/train.parquet"):
        HuggingFace().rows(tmp_path, "train")
    _save(tmp_path / "train.parquet", {"question": ["a?", ""], "answer": ["x", "y"]})
    with pytest.raises(DatasetError, match=r"has no column \['image'\]; there are: question, answer"):
        HuggingFace().rows(tmp_path, "train")
    with pytest.raises(DatasetError, match="no split 'test'; there are: train"):
        HuggingFace(image=None).rows(tmp_path, "test")
    with pytest.raises(DatasetError, match="train.parquet:1: column 'question': expected text that is not blank"):
        HuggingFace(image=None).rows(tmp_path, "train")
    _save(tmp_path / "many.parquet", {"question": ["a?"], "answer": [["x", "y"]]})
    with pytest.raises(DatasetError, match="score 'lower' compares with one answer, the row has 2"):
        HuggingFace(image=None).rows(tmp_path, "many")
    with pytest.raises(ValueError, match="score is 'f1'; there are: exact, lower"):
        HuggingFace(score="f1")


def test_a_dataset_is_read_by_its_id(tmp_path: Path) -> None:
    """A folder in the hub's layout has the place of an id: nothing here reaches the hub."""
    cell = {"bytes": _png(), "path": None}
    for split in ("train", "validation"):
        columns = {"question": [f"{split}?"], "answer": ["red"], "image": [cell]}
        _save(tmp_path / f"repo/data/{split}-00000-of-00001.parquet", columns)
    task = HuggingFace(dataset=str(tmp_path / "repo"))
    (tmp_path / "cache").mkdir()
    [sample] = task.rows(tmp_path / "cache", "validation")
    assert (sample.question, sample.answer) == ("validation?", "red")
    assert load_image(sample.images[0], sample.origin).size == (4, 3)
    with pytest.raises(DatasetError, match="no split 'test'; there are: train, validation"):
        task.rows(tmp_path / "cache", "test")
