"""Two plots drawn with Pillow, so that TensorBoard and the docs need no plotting library: a heat map and points."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]
INK, GRID = "#222222", "#dddddd"
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22")
LIGHT, DARK = (247, 251, 255), (8, 48, 107)


def heat_map(title: str, cells: Mapping[tuple[str, str], float]) -> Pixels:
    """A table of numbers on a scale from light (the smallest) to dark (the largest).

    Args:
        title: Written above.
        cells: (row, column) -> number, in the order in which rows and columns are to appear; absent cells stay grey.

    Returns:
        (H, W, 3) pixels.
    """
    rows, columns = list(dict.fromkeys(row for row, _ in cells)), list(dict.fromkeys(column for _, column in cells))
    font = ImageFont.load_default(size=12)
    left = 16 + max(round(font.getlength(row)) for row in rows)
    width = max(64, *(12 + round(font.getlength(column)) for column in columns))
    canvas = Image.new("RGB", (left + width * len(columns) + 8, 52 + 22 * len(rows)), "white")
    draw = ImageDraw.Draw(canvas)
    draw.text((8, 6), title, font=ImageFont.load_default(size=14), fill=INK)
    finite = [value for value in cells.values() if math.isfinite(value)]
    low, high = (min(finite), max(finite)) if finite else (0.0, 0.0)
    for i, column in enumerate(columns):
        draw.text((left + width * (i + 0.5), 38), column, font=font, fill=INK, anchor="mm")
    for j, row in enumerate(rows):
        y = 48 + 22 * j
        draw.text((left - 8, y + 11), row, font=font, fill=INK, anchor="rm")
        for i, column in enumerate(columns):
            box = (left + width * i, y, left + width * (i + 1) - 2, y + 20)
            value = cells.get((row, column))
            share = 0.0 if value is None or high == low or not math.isfinite(value) else (value - low) / (high - low)
            shade = tuple(round(a + (b - a) * share) for a, b in zip(LIGHT, DARK, strict=True))
            draw.rectangle(box, fill="#eeeeee" if value is None else shade)
            if value is not None:
                at = ((box[0] + box[2]) / 2, y + 10)
                draw.text(at, f"{value:.3g}", font=font, fill="white" if share > 0.5 else INK, anchor="mm")
    return np.asarray(canvas)


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        points: (x, y, label); an empty label is not written.
        joined: Draw a line through the points in their order.
    """

    points: Sequence[tuple[float, float, str]]
    joined: bool = True


def scatter(title: str, x: str, y: str, series: Mapping[str, Series], size: tuple[int, int] = (880, 560)) -> Pixels:
    """Points in a plane with axes and a legend.

    Args:
        title: Written above.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        series: By name; an empty name is left out of the legend.
        size: Width and height in pixels.

    Returns:
        (H, W, 3) pixels.
    """
    width, height = size
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    font, small = ImageFont.load_default(size=14), ImageFont.load_default(size=11)
    box = (64, 40, width - 190, height - 52)
    xs = ticks([point[0] for one in series.values() for point in one.points])
    ys = ticks([point[1] for one in series.values() for point in one.points])

    def place(a: float, b: float) -> tuple[float, float]:
        across, up = (a - xs[0]) / (xs[-1] - xs[0]), (b - ys[0]) / (ys[-1] - ys[0])
        return box[0] + across * (box[2] - box[0]), box[3] - up * (box[3] - box[1])

    for value in xs:
        at = place(value, ys[0])
        draw.line((at[0], box[1], at[0], box[3]), fill=GRID)
        draw.text((at[0], box[3] + 6), f"{value:g}", font=small, fill=INK, anchor="mt")
    for value in ys:
        at = place(xs[0], value)
        draw.line((box[0], at[1], box[2], at[1]), fill=GRID)
        draw.text((box[0] - 6, at[1]), f"{value:g}", font=small, fill=INK, anchor="rm")
    draw.text((box[0], 10), title, font=font, fill=INK)
    draw.text(((box[0] + box[2]) / 2, height - 18), x, font=font, fill=INK, anchor="mm")
    _write_upright(canvas, (8, (box[1] + box[3]) // 2), y, font)
    taken: list[tuple[float, float, float, float]] = []
    labels = []
    for i, (name, one) in enumerate(series.items()):
        colour = COLOURS[i % len(COLOURS)]
        places = [place(a, b) for a, b, _ in one.points]
        if one.joined and len(places) > 1:
            draw.line(places, fill=colour, width=2)
        for (a, b), (_, _, label) in zip(places, one.points, strict=True):
            draw.ellipse((a - 4, b - 4, a + 4, b + 4), fill=colour)
            taken.append((a - 4, b - 4, a + 4, b + 4))
            labels.append((a, b, label, colour))
        if name:
            level = box[1] + 8 + 20 * i
            draw.ellipse((box[2] + 14, level - 4, box[2] + 22, level + 4), fill=colour)
            draw.text((box[2] + 28, level), name, font=small, fill=INK, anchor="lm")
    corners = [((6, -6), "lb"), ((6, 6), "lt"), ((-6, -6), "rb"), ((-6, 6), "rt")]
    for a, b, label, colour in labels:
        if label:  # at the first corner of its point where it covers nothing, or else at the first
            spots = [((a + dx, b + dy), anchor) for (dx, dy), anchor in corners]
            boxes = [draw.textbbox(at, label, font=small, anchor=anchor) for at, anchor in spots]
            best = next((n for n, one in enumerate(boxes) if not any(_overlap(one, other) for other in taken)), 0)
            taken.append(boxes[best])
            draw.text(spots[best][0], label, font=small, fill=colour, anchor=spots[best][1])
    return np.asarray(canvas)


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def ticks(values: Sequence[float]) -> list[float]:
    """About six round numbers that enclose ``values``."""
    low, high = min(values), max(values)
    rough = max(high - low, 1e-6 * max(abs(high), 1.0)) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _write_upright(canvas: Image.Image, at: tuple[int, int], text: str, font: Any) -> None:
    strip = Image.new("RGB", (round(font.getlength(text)) + 4, 22), "white")
    ImageDraw.Draw(strip).text((2, 2), text, font=font, fill=INK)
    turned = strip.rotate(90, expand=True)
    canvas.paste(turned, (at[0], at[1] - turned.height // 2))
