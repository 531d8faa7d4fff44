"""Reading pictures: every kind is either turned into plain RGB in a stated way, or refused by name."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import EncodedImage, ImageRef

MAX_PIXELS = 89_478_485
"""Larger pictures are refused: a file of a few KB can claim a size that does not fit in memory. It is the size at which
PIL starts to warn of a decompression bomb."""

ORIENTATION = 274
SIDEWAYS = (5, 6, 7, 8)
"""Values of the EXIF orientation that swap height and width."""


class ImageError(DatasetError):
    """A picture cannot be used; the message names the file, the row and the reason."""


def load_image(ref: ImageRef, where: str) -> Image.Image:
    """Decode a picture to RGB, upright.

    - The EXIF orientation is applied.
    - Transparency (RGBA, LA, a palette's) is laid over white.
    - 16-bit grey is reduced to its upper 8 bits; CMYK, palette, grey and 1-bit pictures are converted.
    - Of an animation, the first frame is taken.

    Args:
        ref: A file, or encoded bytes.
        where: ``file:row`` of the row that uses the picture, for the message.

    Raises:
        ImageError: The picture is missing, empty, truncated, of no known format, of a numeric type without a defined
            range, or of more than ``MAX_PIXELS`` pixels.
    """
    with _opened(ref, where) as image:
        image.load()
        return _to_rgb(ImageOps.exif_transpose(image))


def picture_size(ref: ImageRef, where: str) -> tuple[int, int]:
    """Height and width of a picture as :func:`load_image` gives it, read from its header.

    Raises:
        ImageError: As far as the header tells.
    """
    with _opened(ref, where) as image:
        width, height = image.size
        # A PNG may hold its orientation behind the pixels, so PIL decodes it to be sure that there is none.
        file: Any = image
        sure = image.format != "PNG" or "exif" in image.info or b"eXIf" in _chunks(file.fp)
        return (width, height) if sure and image.getexif().get(ORIENTATION, 1) in SIDEWAYS else (height, width)


def _chunks(file: Any) -> set[bytes]:
    """The names of the chunks in a PNG file."""
    names = set()
    place = 8
    while len(head := (file.seek(place), file.read(8))[1]) == 8:
        names.add(head[4:])
        place += 12 + int.from_bytes(head[:4], "big")
    return names


@contextmanager
def _opened(ref: ImageRef, where: str) -> Iterator[Image.Image]:
    name = ref.name if isinstance(ref, EncodedImage) else str(ref)
    try:
        data: Any = io.BytesIO(ref.data) if isinstance(ref, EncodedImage) else ref.open("rb")
    except OSError as error:
        raise ImageError(f"{where}: image {name} cannot be read: {error.strerror}") from error
    except ValueError as error:  # a NUL, or half of a surrogate pair
        raise ImageError(f"{where}: image {name!r} is no name that a file can have: {error}") from error
    with data:
        start = data.read(8)
        if not start:
            raise ImageError(f"{where}: image {name} is empty (0 bytes); download it again")
        data.seek(0)
        try:
            with Image.open(data) as image:
                if image.width * image.height > MAX_PIXELS:
                    raise Image.DecompressionBombError(f"it claims {image.width} x {image.height} pixels")
                yield image
        except Image.DecompressionBombError as error:
            raise ImageError(
                f"{where}: image {name}: {error}; at most {MAX_PIXELS:,} are read, scale it down"
            ) from error
        except UnidentifiedImageError as error:
            raise ImageError(
                f"{where}: image {name} is of no known picture format; it starts with {start!r}"
            ) from error
        except Exception as error:  # PIL's decoders raise nearly anything on damaged data.
            raise ImageError(f"{where}: image {name} cannot be decoded: {error}") from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError("its integer values are outside 0-65535; save it with 8 or 16 bits per channel")
        return Image.fromarray((values >> 8).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError(
            "its values are floating-point numbers without a defined range; save it with 8 bits per channel"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
