"""Pictures with question, answer and prediction, drawn as one image."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mllm_lit.data.images import load_image
from mllm_lit.evaluation.sets import Record

CELL, PICTURE, COLUMNS = (300, 330), 160, 4


def grid(pairs: Sequence[tuple[Any, Record]]) -> NDArray[np.uint8]:
    """Draw samples in rows of four.

    Args:
        pairs: Samples with at least one image, and their records.

    Returns:
        (H, W, 3) pixels.
    """
    width, height = CELL
    rows = -(-len(pairs) // COLUMNS)
    canvas = Image.new("RGB", (width * min(COLUMNS, len(pairs)), height * rows), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=13)
    for i, (sample, record) in enumerate(pairs):
        x, y = i % COLUMNS * width + 8, i // COLUMNS * height + 8
        picture = load_image(sample.images[0], sample.origin)
        picture = picture.resize((round(PICTURE * picture.width / picture.height), PICTURE))
        canvas.paste(picture.crop((0, 0, min(picture.width, width - 16), PICTURE)), (x, y))
        right = record["score"] is None or record["score"] >= 0.5
        y = write(draw, (x, y + PICTURE + 4), "Q: " + record["question"], font, "black", lines=4)
        y = write(draw, (x, y), "answer: " + record["answer"], font, "#1a56b0", lines=2)
        write(draw, (x, y), "model: " + record["prediction"], font, "#1b7a34" if right else "#b3261e", lines=2)
    return np.asarray(canvas)


def write(draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Any, fill: str, lines: int) -> int:
    """Write wrapped text, at most ``lines`` lines, and return the y below it."""
    wrapped = textwrap.wrap(text, 42, max_lines=lines, placeholder=" …")
    draw.multiline_text(at, "\n".join(wrapped), font=font, fill=fill, spacing=2)
    return at[1] + 17 * len(wrapped) + 2
