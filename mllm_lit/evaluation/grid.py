"""Pictures with question, answer and prediction, drawn as one image."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont, ImageOps

from mllm_lit.data.images import load_image
from mllm_lit.evaluation.sets import Record

WIDTH, PICTURE, GAP, SIZE = 640, 170, 12, 21
"""In pixels: of the image, of a picture's larger side, between things, of letters. Loggers show it at half its size."""


def grid(pairs: Sequence[tuple[Any, Record]]) -> NDArray[np.uint8]:
    """Draw samples one below the other, the picture on the left and what was asked and said on the right.

    Args:
        pairs: Samples with at least one image, and their records.

    Returns:
        (H, 640, 3) pixels.
    """
    rows = [row(sample, record) for sample, record in pairs]
    canvas = Image.new("RGB", (WIDTH, sum(one.height for one in rows)), "white")
    y = 0
    for one in rows:
        canvas.paste(one, (0, y))
        y += one.height
    return np.asarray(canvas)


def row(sample: Any, record: Record) -> Image.Image:
    """One sample; green is a right prediction, red a wrong one, grey one that is not scored alone."""
    picture = load_image(sample.images[0], sample.origin)
    picture = ImageOps.contain(picture, (PICTURE, PICTURE))
    score = record["score"]
    said = "#555555" if score is None else "#1b7a34" if score >= 0.5 else "#b3261e"
    x = PICTURE + 2 * GAP
    texts = [
        ("#000000", lines("Q: " + record["question"], WIDTH - x - GAP, 4)),
        ("#1a56b0", lines("answer: " + record["answer"], WIDTH - x - GAP, 3)),
        (said, lines("model: " + record["prediction"], WIDTH - x - GAP, 3)),
    ]
    step = round(1.25 * SIZE)
    height = max(picture.height, step * sum(len(text) for _, text in texts)) + 2 * GAP
    canvas = Image.new("RGB", (WIDTH, height), "white")
    canvas.paste(picture, (GAP, GAP))
    draw, y = ImageDraw.Draw(canvas), GAP
    for colour, text in texts:
        for line in text:
            draw.text((x, y), line, colour, font())
            y += step
    draw.line((0, height - 2, WIDTH, height - 2), "#cccccc", 2)
    return canvas


def lines(text: str, width: int, most: int) -> list[str]:
    """Text in at most ``most`` lines of some pixels, broken at spaces, and within words that are longer."""
    found = [""]
    for word in text.split():
        longer = f"{found[-1]} {word}".strip()
        if font().getlength(longer) <= width:
            found[-1] = longer
            continue
        found += [""] * bool(found[-1])
        for letter in word:
            if font().getlength(found[-1] + letter) > width:
                found.append("")
            found[-1] += letter
    if len(found) > most:
        last = found[most - 1]
        while font().getlength(f"{last} …") > width:
            last = last[:-1]
        found = [*found[: most - 1], f"{last} …"]
    return found


@cache
def font() -> Any:
    """DejaVu Sans, which comes with matplotlib and has the letters of most alphabets."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", SIZE)
