"""Sizes of pictures: read from headers, kept beside the data, and read again where a file has changed."""

from pathlib import Path

import pytest
from PIL import Image

import mllm_lit.data.picture_sizes as sizes
from mllm_lit.data.images import ImageError
from mllm_lit.data.picture_sizes import FILE, PictureSizes
from mllm_lit.data.sample import EncodedImage, Sample


@pytest.fixture
def samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Sample]:
    """Six rows on five pictures of different sizes, one of them in a table."""
    monkeypatch.setattr(sizes, "WORTH_KEEPING", 3)
    for i in range(4):
        Image.new("RGB", (10 + i, 20), "red").save(tmp_path / f"{i}.png")
    inside = EncodedImage((tmp_path / "0.png").read_bytes(), "train.parquet:0")
    images = [
        tmp_path / "0.png",
        tmp_path / "1.png",
        tmp_path / "0.png",
        tmp_path / "2.png",
        tmp_path / "3.png",
        inside,
    ]
    return [Sample.single_turn(str(i), "?", "!", (image,), origin=f"rows.json:{i}") for i, image in enumerate(images)]


def opened(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The pictures whose headers are read from here on."""
    seen: list[object] = []
    read = sizes.picture_size
    monkeypatch.setattr(sizes, "picture_size", lambda ref, where: (seen.append(ref), read(ref, where))[1])
    return seen


def test_the_second_run_opens_no_file(samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = opened(monkeypatch)
    first = PictureSizes(tmp_path).of(samples)
    assert first[samples[3].images[0]] == (20, 12)
    assert len(first) == len(seen) == 5
    assert (tmp_path / FILE).is_file()
    seen.clear()
    assert PictureSizes(tmp_path).of(samples) == first
    assert seen == [samples[5].images[0]], "bytes of a table are no file"


def test_a_picture_that_has_changed_is_read_again(
    samples: list[Sample], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    PictureSizes(tmp_path).of(samples)
    Image.new("RGB", (99, 7), "red").save(tmp_path / "1.png")
    seen = opened(monkeypatch)
    assert PictureSizes(tmp_path).of(samples)[tmp_path / "1.png"] == (7, 99)
    assert tmp_path / "1.png" in seen


@pytest.mark.parametrize("content", [b"", b"rubbish"])
def test_a_broken_file_is_read_anew(content: bytes, samples: list[Sample], tmp_path: Path) -> None:
    expected = PictureSizes(tmp_path).of(samples)
    (tmp_path / FILE).write_bytes(content)
    assert PictureSizes(tmp_path).of(samples) == expected


def test_a_folder_that_cannot_be_written_is_said_and_does_no_harm(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / FILE.parent).write_text("a file where the folder would be")
    with pytest.warns(UserWarning, match="Picture sizes are read anew in every run"):
        assert len(PictureSizes(tmp_path).of(samples)) == 5


def test_few_pictures_leave_nothing_behind(samples: list[Sample], tmp_path: Path) -> None:
    PictureSizes(tmp_path).of(samples[:2])
    assert not (tmp_path / FILE.parent).exists()


def test_a_missing_picture_is_named_with_its_row(samples: list[Sample], tmp_path: Path) -> None:
    (tmp_path / "2.png").unlink()
    with pytest.raises(ImageError, match=r"rows.json:3: image .*2.png cannot be read: No such file"):
        PictureSizes(tmp_path).of(samples)
