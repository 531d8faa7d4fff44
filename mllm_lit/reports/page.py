"""The page of a report: blocks in sections, as one HTML file, and its tables as Markdown, CSV and LaTeX."""

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from mllm_lit.errors import writing
from mllm_lit.reports.scores import BEST, NEAR, Difference, mean_sd

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NONE = "–"
NEAR_SIGN = "≈"
COLOURS = ("#1f5fa8", "#c4421a", "#2e7d32", "#7b3fa0", "#8a6d00", "#00838f", "#ad1457", "#546e7a", "#5d4037", "#283593")
STYLES = ("-", "--", ":", "-.")
TEX = {"\\": r"\textbackslash{}", "^": r"\textasciicircum{}", "~": r"\textasciitilde{}"}
TEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}
TEX |= {"±": r"$\pm$", NEAR_SIGN: r"$\approx$", "−": "$-$", NONE: "--", "→": r"$\to$", "·": r"$\cdot$"}


@dataclass(frozen=True)
class Score:
    """A mean over seeds.

    Attributes:
        values: One a seed.
        digits: Behind the point.
        mark: ``best``, ``near`` (within noise of it) or nothing.
    """

    values: Sequence[float]
    digits: int = 1
    mark: str = ""

    @property
    def numbers(self) -> dict[str, float | None]:
        """For a CSV file: what is put behind the column's name, and the number."""
        mean, sd = mean_sd(self.values)
        return {"": mean, " sd": sd, " seeds": len(self.values)}

    def __str__(self) -> str:
        mean, sd = mean_sd(self.values)
        spread = "" if sd is None else f" ± {sd:,.{self.digits}f}"
        return f"{mean:,.{self.digits}f}{spread}{f' {NEAR_SIGN}' if self.mark == NEAR else ''}"


@dataclass(frozen=True)
class Gap:
    """A paired difference in a table."""

    difference: Difference
    digits: int = 1
    mark = ""

    @property
    def numbers(self) -> dict[str, float | None]:
        """As :attr:`Score.numbers`."""
        one = self.difference
        return {"": one.mean, " low": one.low, " high": one.high, " pairs": one.pairs}

    def __str__(self) -> str:
        one = self.difference
        ends = (one.mean,) if one.low is None or one.high is None else (one.mean, one.low, one.high)
        mean, *rest = (f"{end:+.{self.digits}f}".replace("-", "−") for end in ends)
        return mean + (f" [{', '.join(rest)}]" if rest else "")


@dataclass(frozen=True)
class Table:
    """Rows under a head; cells are texts, numbers, :class:`Score`, :class:`Gap` or ``None``.

    Attributes:
        name: Of its CSV file; a table without is in the page alone.
        long: It is in the CSV file alone.
    """

    title: str
    head: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    name: str = ""
    long: bool = False
    kind = "table"


@dataclass(frozen=True)
class Figures:
    """Pictures side by side where there is room, under one legend of (colour, dashes, name)."""

    pictures: Sequence[str]
    legend: Sequence[tuple[str, str, str]] = ()
    note: str = ""
    wide: bool = False
    kind = "figures"


@dataclass(frozen=True)
class Text:
    """A paragraph; of a warning, set off."""

    text: str
    warning: bool = False
    kind = "text"


@dataclass(frozen=True)
class Answers:
    """Predictions to look at, as :func:`mllm_lit.reports.predictions.shown` makes them."""

    title: str
    rows: Sequence[Mapping[str, Any]]
    kind = "answers"


@dataclass(frozen=True)
class Details:
    """Blocks that open on a click."""

    title: str
    blocks: Sequence["Block"]
    kind = "details"


Block = Table | Figures | Text | Answers | Details


@dataclass(frozen=True)
class Section:
    """A heading and what is below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def anchor(self) -> str:
        """For links."""
        return slug(self.title)


@dataclass
class Page:
    """A report.

    Attributes:
        title: Its name.
        lead: What it is about.
        facts: Short ones, below.
        sections: In order.
    """

    title: str
    lead: str = ""
    facts: Sequence[str] = ()
    sections: list[Section] = field(default_factory=list)

    def tables(self) -> list[Table]:
        """All that have a file, those in details included, each of a name of its own."""

        def within(blocks: Iterable[Block]) -> Iterator[Table]:
            for block in blocks:
                if isinstance(block, Table) and block.name:
                    yield block
                elif isinstance(block, Details):
                    yield from within(block.blocks)

        found: dict[str, Table] = {}
        for table in (table for section in self.sections for table in within(section.blocks)):
            names = (table.name if i == 1 else f"{table.name}_{i}" for i in count(1))
            name = next(name for name in names if name not in found)
            found[name] = replace(table, name=name)
        return list(found.values())

    def html(self, files: bool = False) -> str:
        """One file with everything in it.

        Args:
            files: Those of the tables are beside it.
        """
        from jinja2 import Environment, FileSystemLoader

        loader = FileSystemLoader(Path(__file__).parent)
        environment = Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
        environment.tests |= {"number": is_number}
        environment.filters |= {"cell": text_of}
        return environment.get_template("page.html").render(page=self, files=files)

    def write(self, folder: Path, latex: bool = False) -> Path:
        """``report.html``, and beside it ``tables.md``, a CSV file for each table and, if asked for, ``tables.tex``."""
        tables = self.tables()
        shown = [table for table in tables if not table.long]
        files = {"report.html": self.html(files=True), "tables.md": "\n\n".join(map(markdown, shown)) + "\n"}
        files |= {f"{table.name}.csv": comma_separated(table) for table in tables}
        if latex:
            files["tables.tex"] = "% Needs \\usepackage{booktabs}.\n" + "\n\n".join(map(tex, shown)) + "\n"
        for name, text in files.items():
            with writing(folder / name, len(text.encode())):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, encoding="utf-8")
        return folder / "report.html"


# ---- tables -------------------------------------------------------------------------------------------------------


def is_number(cell: Any) -> bool:
    """Whether a cell stands at the right."""
    return isinstance(cell, int | float | Score | Gap)


def text_of(cell: Any) -> str:
    """A cell as it is read."""
    if cell is None:
        return NONE
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def slug(title: str) -> str:
    """A title as a name of a file.

    >>> slug("gqa, at least+2 (NLL)")
    'gqa_at_least_2_nll'
    """
    return re.sub(r"\W+", "_", title.lower()).strip("_")


def markdown(table: Table) -> str:
    """A table for a Markdown page."""

    def safe(cell: Any) -> str:
        text = " ".join(text_of(cell).split()).replace("<", "&lt;").replace("|", "\\|")
        return f"**{text}**" if getattr(cell, "mark", "") == BEST else text

    lines = [table.head, ["---"] * len(table.head), *table.rows]
    note = f"\n\n{table.note}" if table.note else ""
    return f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(map(safe, line))} |" for line in lines) + note


def tex(table: Table) -> str:
    """A table for LaTeX's booktabs."""

    def safe(cell: Any) -> str:
        text = "".join(TEX.get(sign, sign) for sign in " ".join(text_of(cell).split()))
        return f"\\textbf{{{text}}}" if getattr(cell, "mark", "") == BEST else text

    kinds = [
        any(isinstance(cell, int | float | Score | Gap) for cell in column) for column in zip(*table.rows, strict=True)
    ]
    lines = [" & ".join(map(safe, line)) + r" \\" for line in (table.head, *table.rows)]
    body = [f"% {table.title}", f"\\begin{{tabular}}{{{''.join('lr'[kind] for kind in kinds)}}}", r"\toprule"]
    return "\n".join([*body, lines[0], r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}"])


def comma_separated(table: Table) -> str:
    """A table of plain numbers: a mean has columns for standard deviation and seeds beside it."""
    columns: list[list[Any]] = []
    for name, cells in zip(table.head, zip(*table.rows, strict=True), strict=False):
        ends = dict.fromkeys(end for cell in cells if isinstance(cell, Score | Gap) for end in cell.numbers) or {
            "": None
        }
        for end in ends:
            parts = (
                cell.numbers.get(end) if isinstance(cell, Score | Gap) else None if end else cell for cell in cells
            )
            columns.append([name + end, *parts])
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(zip(*columns, strict=True))
    return out.getvalue()


# ---- figures ------------------------------------------------------------------------------------------------------


def svg(draw: Callable[[], "Figure"]) -> str:
    """What a function draws, as an element of a page; names in it are shown as they are written."""
    import matplotlib as mpl
    from markupsafe import Markup

    settings: Any = {"svg.fonttype": "none", "text.parse_math": False, "svg.hashsalt": "report"}
    out = io.StringIO()
    with mpl.rc_context(settings):
        draw().savefig(out, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    picture = out.getvalue()
    picture = re.sub(r"<metadata>.*?</metadata>", "", picture[picture.index("<svg") :], flags=re.DOTALL)
    picture = re.sub(r' xmlns(:\w+)?="[^"]*"', "", picture)
    picture = re.sub(r'<g id="[^"]*"', "<g", picture)
    own = f"f{crc32(picture.encode()):08x}"  # several pictures have the same names for the same marks
    return Markup(re.sub(r'(id="|#)([mp][0-9a-f]{10})\b', rf"\1{own}\2", picture))


Curve = Mapping[int, Sequence[float]]
"""Step -> values, one a seed."""


def curves(panels: Mapping[str, Mapping[str, Curve]], x: str = "optimizer step") -> Figures:
    """A picture for each panel, a line for each name: the mean over seeds, and a band of a standard deviation.

    Args:
        panels: Title -> name -> values over steps.
        x: Name of the horizontal axis.
    """
    names = list(dict.fromkeys(name for lines in panels.values() for name in lines))
    looks = {name: (COLOURS[i % len(COLOURS)], STYLES[i // len(COLOURS) % 4]) for i, name in enumerate(names)}

    def draw(title: str, lines: Mapping[str, Curve]) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure((4.6, 2.9), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(x)
        axes.grid(color="#e4e4e4")
        axes.spines[["top", "right"]].set_visible(False)
        axes.locator_params("x", integer=True)
        for name, curve in lines.items():
            colour, style = looks[name]
            steps = sorted(curve)
            found = [mean_sd(curve[step]) for step in steps]
            means, spreads = [mean for mean, _ in found], [sd or 0.0 for _, sd in found]
            axes.plot(steps, means, color=colour, ls=style, lw=1.6, marker="o", ms=3)
            if any(spreads):
                low, high = ([m + sign * sd for m, sd in zip(means, spreads, strict=True)] for sign in (-1, 1))
                axes.fill_between(steps, low, high, color=colour, alpha=0.13, lw=0)
        return figure

    pictures = [svg(partial(draw, title, lines)) for title, lines in panels.items()]
    return Figures(pictures, [(*looks[name], name) for name in names] if len(names) > 1 else [])
