"""Plots: what is drawn is what was given, labels keep clear of one another, and no global state is touched."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from mllm_lit.plots import Series, heat_map, pixels, scatter


def boxes(figure: Figure) -> dict[str, Bbox]:
    """Where the labels of points are written."""
    pixels(figure)
    return {text.get_text(): Text.get_window_extent(text) for text in figure.axes[0].texts}


def test_a_heat_map_shows_its_cells() -> None:
    cells = {("block 0", "q"): 0.0, ("block 0", "k"): 1.0, ("block 1", "q"): 0.25, ("block 1", "v"): math.nan}
    axes = heat_map("share", cells).axes[0]
    assert axes.get_title() == "share"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["q", "k", "v"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["block 0", "block 1"]
    written = {text.get_position(): (text.get_text(), text.get_color()) for text in axes.texts}
    dark, light = "black", "white"  # ink on a light and on a dark ground
    assert written == {(0, 0): ("0", dark), (1, 0): ("1", light), (0, 1): ("0.25", dark), (2, 1): ("nan", dark)}
    image: Any = axes.images[0]
    np.testing.assert_array_equal(image.get_array().filled(-1), [[0, 1, -1], [0.25, -1, -1]])
    shades = [image.to_rgba(image.get_array())[0, column, :3].sum() for column in (0, 1)]
    assert shades[0] > shades[1]


def test_a_heat_map_grows_with_its_table() -> None:
    small, large = (pixels(heat_map("t", {(f"block {i}", "q"): 0.5 for i in range(n)})).shape for n in (1, 30))
    assert large[0] > small[0] + 29 * 20
    assert pixels(heat_map("t", {("a", "q"): math.nan})).shape == small


def test_a_scatter_shows_its_points() -> None:
    points = [(0.0, 0.0, ""), (100.0, 50.0, "end")]
    series = {"one": Series(points), "": Series([(50.0, 25.0, "")], joined=False), "empty": Series([])}
    figure = scatter("title", "x", "y", series)
    axes = figure.axes[0]
    assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("title", "x", "y")
    lines = [[(float(x), float(y)) for x, y in np.array(line.get_xydata())] for line in axes.lines]
    assert lines == [[(0, 0), (100, 50)], [(50, 25)], []]
    assert [line.get_linestyle() for line in axes.lines] == ["-", "None", "-"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one"]
    assert [(text.get_text(), tuple(text.xy)) for text in axes.texts] == [("end", (100, 50))]  # type: ignore[attr-defined]
    picture = pixels(figure)
    assert picture.shape == (560, 880, 3)
    assert (picture == (0x1F, 0x77, 0xB4)).all(-1).sum() > 300  # the line of the first series


def test_labels_keep_clear_of_one_another_and_inside() -> None:
    near = [(50 + i / 2, 50 + (i * 7 % 10) / 2, f"method {i}") for i in range(10)]
    series = {"far": Series([(0, 0, "corner"), (100, 100, "other corner")]), "near": Series(near, joined=False)}
    figure = scatter("title", "x", "y", series)
    found = boxes(figure)
    assert found.keys() == {"corner", "other corner", *(label for *_, label in near)}
    for name, box in found.items():
        assert not box.count_overlaps([other for label, other in found.items() if label != name]), name
        assert figure.axes[0].bbox.contains(*box.min)
        assert figure.axes[0].bbox.contains(*box.max)


@pytest.mark.parametrize("points", [[], [(3.0, 3.0, "p")], [(3.0, math.nan, "p"), (1.0, 2.0, "q")]])
def test_few_or_undefined_points_are_drawn(points: list[tuple[float, float, str]]) -> None:
    figure = scatter("title", "x", "y", {"a": Series(points)})
    assert boxes(figure).keys() == {label for x, y, label in points if math.isfinite(x + y)}


CODE = """
import sys
import mllm_lit.plots
assert "matplotlib" not in sys.modules, "imported before something is drawn"
mllm_lit.plots.pixels(mllm_lit.plots.heat_map("t", {("a", "b"): 1.0}))
assert "matplotlib.pyplot" not in sys.modules, "pyplot keeps figures"
"""


def test_matplotlib_waits_until_something_is_drawn() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
