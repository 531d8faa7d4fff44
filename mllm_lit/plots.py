"""Two plots for TensorBoard and the docs: a heat map and points. matplotlib is imported when one is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SPOTS = [(d * i, d * j) for d in (4, 12, 22, 34, 48) for i in (1, -1, 0) for j in (1, -1, 0) if i or j]
"""Where a label may stand from its point, in points, the best ones first."""


def heat_map(title: str, cells: Mapping[tuple[str, str], float]) -> "Figure":
    """A table of numbers on a scale from light (the smallest) to dark (the largest).

    Args:
        title: Written above.
        cells: (row, column) -> number, in the order in which rows and columns are to appear; absent cells stay grey.
    """
    from matplotlib.figure import Figure

    rows, columns = list(dict.fromkeys(row for row, _ in cells)), list(dict.fromkeys(column for _, column in cells))
    table = np.full((len(rows), len(columns)), np.nan)
    for (row, column), value in cells.items():
        table[rows.index(row), columns.index(column)] = value
    broad = max(0.7, 0.1 + 0.085 * max(map(len, columns)))
    figure = Figure((1.4 + broad * len(columns), 0.9 + 0.26 * len(rows)), layout="constrained")
    axes = figure.add_subplot(title=title, facecolor="#eeeeee")
    image: Any = axes.imshow(np.ma.masked_invalid(table), cmap="Blues", aspect="auto")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    axes.tick_params(length=0, labelsize=9, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    for (row, column), value in cells.items():
        dark = np.isfinite(value) and image.norm(value) > 0.5
        at = columns.index(column), rows.index(row)
        axes.text(*at, f"{value:.3g}", color="white" if dark else "black", fontsize=9, ha="center", va="center")
    return figure


@dataclass(frozen=True)
class Series:
    """Points of one colour.

    Attributes:
        points: (x, y, label); an empty label is not written.
        joined: Draw a line through the points in their order.
    """

    points: Sequence[tuple[float, float, str]]
    joined: bool = True


def scatter(title: str, x: str, y: str, series: Mapping[str, Series]) -> "Figure":
    """Points in a plane with a legend.

    Args:
        title: Written above.
        x: Name of the horizontal axis.
        y: Name of the vertical axis.
        series: By name; an empty name, or one without points, is left out of the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure((8.8, 5.6), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    axes.grid(color="#dddddd")
    axes.set_axisbelow(True)
    axes.margins(0.08)
    named = {}
    for name, one in series.items():
        places = [point[:2] for point in one.points]
        (line,) = axes.plot(*zip(*places, strict=True) if places else ((), ()), "o-" if one.joined else "o", ms=5)
        if name and places:
            named[name] = line
    if named:
        figure.legend(named.values(), named, loc="outside right upper", frameon=False, fontsize=9)
    figure.draw_without_rendering()  # settles where everything is, before labels are put between
    _label(axes, [one.points for one in series.values()])
    return figure


def _label(axes: Any, groups: Sequence[Sequence[tuple[float, float, str]]]) -> None:
    """Write each point's label at the near spot where it covers the fewest markers, lines and other labels."""
    from matplotlib.transforms import Bbox

    lines = [axes.transData.transform_path(line.get_path()) for line in axes.lines if line.get_linestyle() == "-"]
    markers = [place for line in axes.lines for place in axes.transData.transform(line.get_xydata())]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in markers]

    def covered(box: Any) -> int:
        outside = Bbox.union([axes.bbox, box]).bounds != axes.bbox.bounds
        crossed = sum(path.intersects_bbox(box, filled=False) for path in lines)
        return 100 * outside + box.count_overlaps(taken) + crossed

    points = [(point, line.get_color()) for line, group in zip(axes.lines, groups, strict=True) for point in group]
    for marker, ((*point, label), colour) in zip(markers, points, strict=True):
        if label and np.isfinite(marker).all():
            style = {"color": colour, "arrowprops": {"arrowstyle": "-", "lw": 0.5, "color": colour}}
            text = axes.annotate(label, point, (0, 0), textcoords="offset points", size=8, **style)
            size = text.get_window_extent().size
            corners = [marker + np.array(s) * axes.figure.dpi / 72 + size * (np.sign(s) - 1) / 2 for s in SPOTS]
            boxes = [Bbox.from_bounds(*corner, *size) for corner in corners]
            best = min(range(len(SPOTS)), key=lambda i, boxes=boxes: covered(boxes[i]))  # type: ignore[misc]
            taken.append(boxes[best])
            text.xyann = i, j = SPOTS[best]
            text.set(ha=("center", "left", "right")[np.sign(i)], va=("center", "bottom", "top")[np.sign(j)])
            text.set_in_layout(False)  # so that nothing moves any more
            text.arrow_patch.set_visible(max(abs(i), abs(j)) > 8)


def pixels(figure: "Figure") -> NDArray[np.uint8]:
    """What a figure looks like, (H, W, 3)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
