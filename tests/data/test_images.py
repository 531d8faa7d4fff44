"""Every kind of picture is turned into upright RGB, or refused with file and row."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mllm_lit.data.images import MAX_PIXELS, ImageError, load_image, picture_size
from mllm_lit.data.sample import EncodedImage

RED = (255, 0, 0)


def _load(path: Path) -> Image.Image:
    image = load_image(path, "rows.json:5")
    assert image.mode == "RGB"
    return image


def _corner(image: Image.Image) -> tuple[int, ...]:
    pixel = image.getpixel((0, 0))
    assert isinstance(pixel, tuple)
    return pixel


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "CMYK", "YCbCr"])
def test_plain_modes(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tiff"
    Image.new("RGB", (4, 3), "white").convert(mode).save(path)
    assert _corner(_load(path)) == pytest.approx((255, 255, 255), abs=2)


def test_cmyk_jpeg_keeps_its_colour(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    assert _corner(_load(tmp_path / "a.jpg")) == pytest.approx(RED, abs=6)


def test_16_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 0x4000, 0x8000, 0xFFFF]], dtype=np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    assert np.asarray(_load(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 64, 128, 255]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_over_white(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if mode == "P":
        image = Image.new("P", (2, 2), 0)
        image.putpalette([0, 0, 0, 255, 0, 0])
        image.putpixel((1, 1), 1)
        image.save(path, transparency=0)
    else:
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).convert(mode).save(path)
    assert _corner(_load(path)) == (255, 255, 255)


def test_half_transparent_red_is_pink(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (255, 0, 0, 128)).save(tmp_path / "a.png")
    assert _corner(_load(tmp_path / "a.png")) == pytest.approx((255, 127, 127), abs=1)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_first_frame_of_an_animation(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"a.{suffix}", save_all=True, append_images=frames[1:])
    assert _corner(_load(tmp_path / f"a.{suffix}")) == pytest.approx(RED, abs=2)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2), "red")
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert _load(tmp_path / "a.jpg").size == (2, 4)


def test_encoded_image_is_read_from_its_bytes() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(buffer, "png")
    assert load_image(EncodedImage(buffer.getvalue(), "t.parquet:3"), "t.parquet:3").size == (4, 3)
    with pytest.raises(ImageError, match=r"t.parquet:3: image t.parquet:3 is empty \(0 bytes\)"):
        load_image(EncodedImage(b"", "t.parquet:3"), "t.parquet:3")


def _huge_png() -> bytes:
    side = int(MAX_PIXELS**0.5) + 1

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def _truncated() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(buffer, "jpeg")
    return buffer.getvalue()[:600]


def _floats() -> bytes:
    buffer = io.BytesIO()
    Image.new("F", (2, 2), 0.5).save(buffer, "tiff")
    return buffer.getvalue()


BAD = {
    "zero bytes": (b"", "is empty"),
    "truncated": (_truncated(), "cannot be decoded"),
    "no picture": (b"<html>404", r"no known picture format; it starts with b'<html>40'"),
    "decompression bomb": (_huge_png(), r"at most 89,478,485 are read"),
    "floats": (_floats(), "floating-point"),
}


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("data", "message"), BAD.values(), ids=BAD)
def test_unusable_picture_is_named_with_file_and_row(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        load_image(path, "rows.json:5")
    assert str(caught.value).startswith(f"rows.json:5: image {path}")


def test_missing_picture_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"rows.json:5: image .*none.jpg cannot be read: No such file"):
        load_image(tmp_path / "none.jpg", "rows.json:5")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("turned", [False, True])
def test_the_size_is_that_of_the_decoded_picture(kind: str, turned: bool, tmp_path: Path) -> None:
    path = tmp_path / f"a.{kind.lower()}"
    exif = Image.Exif()
    if turned:
        exif[274] = 6
    Image.new("RGB", (40, 24), "red").save(path, kind, exif=exif)
    if kind == "PNG" and turned:  # The orientation may lie behind the pixels.
        data = path.read_bytes()
        at = data.index(b"eXIf") - 4
        size = 12 + int.from_bytes(data[at : at + 4], "big")
        end = data.index(b"IEND") - 4
        path.write_bytes(data[:at] + data[at + size : end] + data[at : at + size] + data[end:])
    image = load_image(path, "rows.json:1")
    assert (image.height, image.width) == picture_size(path, "rows.json:1") == ((40, 24) if turned else (24, 40))
