"""The trade-off study: methods x learning rates x seeds, from a grid file to a table and a Pareto plot.

A cell is one run of ``tools/fit.py`` (or, for merges, of ``tools/merge.py`` on a finished run). The learning rate of a
method is the one with the best target score on the validation split, from runs with one seed; of equal ones the
smallest. Then every seed is trained with it and scored on whole test splits. Finished cells are not repeated, unless
their settings or their data were edited since.
"""

import json
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import msgspec
import yaml

from mllm_lit.errors import HIGHEST_SEED, UserError
from mllm_lit.merging.options import check_options
from mllm_lit.metrics import tradeoff

TRADEOFF = ("A_S", "A_T", "H", "O")


class GridError(UserError, ValueError):
    """The grid file cannot be read as one; the message names the method and the key."""


Seed = Annotated[int, msgspec.Meta(ge=0, le=HIGHEST_SEED)]
Rate = Annotated[float, msgspec.Meta(gt=0)]


class _Row(msgspec.Struct):
    """What a method's keys take."""

    seeds: Annotated[list[Seed], msgspec.Meta(min_length=1)]
    words: str = ""
    rates: Annotated[list[Rate], msgspec.Meta(min_length=1)] | None = None
    of: str | None = None
    merge: str | None = None
    options: dict[str, Any] = {}
    label: str | None = None


class _Content(msgspec.Struct):
    """What a grid's keys take."""

    name: Annotated[str, msgspec.Meta(pattern=r"^[\w-]+$")]
    words: str
    rate: str
    choosing: str
    choosing_seed: Seed
    methods: dict[str, dict[str, Any]]
    claims: list[Any] = []


def checked(where: str, value: Any, expected: Any) -> None:
    """Hold a value against a type.

    Raises:
        GridError: It differs; names the place in it.
    """
    try:
        msgspec.convert(value, expected)
    except msgspec.ValidationError as error:
        raise GridError(f"{where}: {error}.") from error


@dataclass(frozen=True)
class Method:
    """One row of the study.

    Attributes:
        name: Of the row and of its result file.
        seeds: Of the reported runs.
        words: For ``tools/fit.py``; ``{lr}`` in them is the learning rate.
        rates: Learning rates to choose from; one alone is taken as it is.
        of: For a merge, the method whose runs are merged; it then has no words and rates of its own.
        merge: Name of the merge.
        options: Its arguments, as YAML.
        label: Of a sweep, the point that stands for the method.
    """

    name: str
    seeds: tuple[int, ...]
    words: tuple[str, ...] = ()
    rates: tuple[float, ...] = ()
    of: str | None = None
    merge: str | None = None
    options: str = "{}"
    label: str | None = None


@dataclass(frozen=True)
class Claim:
    """What a paper says of two methods: that one scores higher than the other.

    Attributes:
        says: The claim.
        source: Where it was made.
        higher: The method that is said to score higher.
        lower: The other one.
        score: ``target``, ``A_S``, ``A_T``, ``H`` or ``O``.
    """

    says: str
    source: str
    higher: str
    lower: str
    score: str


@dataclass(frozen=True)
class Grid:
    """A study.

    Attributes:
        name: Of the folders with runs and results.
        words: For every run; a configuration among them.
        rate: Words for every run, too, behind all others, with ``{lr}`` for its learning rate in them.
        choosing: Words for the runs that choose it, ahead of a method's own words.
        choosing_seed: Of those runs.
        methods: By name.
        claims: What is held against the results.
    """

    name: str
    words: tuple[str, ...]
    rate: tuple[str, ...]
    choosing: tuple[str, ...]
    choosing_seed: int
    methods: Mapping[str, Method]
    claims: tuple[Claim, ...] = ()


def read_grid(path: Path) -> Grid:
    """Read a grid file; see ``benchmarks/tradeoffs.yaml``.

    Raises:
        GridError: It is no YAML, a key is unknown or missing, or a value is not what the key takes.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise GridError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    fields = {"name", "words", "rate", "choosing", "choosing_seed", "methods"}
    if not isinstance(content, dict) or content.keys() - {"claims"} != fields:
        found = sorted(content, key=str) if isinstance(content, dict) else type(content).__name__
        raise GridError(f"{path} has the keys {found}, expected {sorted(fields)}.")
    checked(str(path), content, _Content)
    methods = {name: _method(name, row) for name, row in content["methods"].items()}
    for method in methods.values():
        if method.of is not None and (method.of not in methods or methods[method.of].of is not None):
            raise GridError(f"{method.name} merges runs of {method.of!r}, which is no trained method of the grid.")
        if method.of is not None and not set(method.seeds) <= set(methods[method.of].seeds):
            raise GridError(
                f"{method.name} has seeds {method.seeds}, the runs that it merges {methods[method.of].seeds}."
            )
    words = {key: tuple(str(content[key]).split()) for key in ("words", "rate", "choosing")}
    claims = tuple(_claim(row, methods) for row in content.get("claims", ()))
    return Grid(content["name"], choosing_seed=int(content["choosing_seed"]), methods=methods, claims=claims, **words)


def _claim(row: Mapping[str, str], methods: Mapping[str, Method]) -> Claim:
    checked("a claim", row, dict[str, str])
    if row.keys() != Claim.__dataclass_fields__.keys():
        raise GridError(f"a claim has the keys {sorted(row)}, expected {sorted(Claim.__dataclass_fields__)}.")
    claim = Claim(**row)
    if unknown := {claim.higher, claim.lower} - methods.keys():
        raise GridError(f"the claim {claim.says!r} is about {sorted(unknown)}; the grid has {list(methods)}.")
    if claim.score not in (scores := ("target", *TRADEOFF)):
        raise GridError(f"the claim {claim.says!r} is about the score {claim.score!r}, expected one of {scores}.")
    return claim


def _method(name: str, row: Mapping[str, Any]) -> Method:
    trained, merged = {"seeds", "words", "rates"}, {"seeds", "of", "merge"}
    if row.keys() != trained and not merged <= row.keys() <= merged | {"options", "label"}:
        raise GridError(f"{name} has the keys {sorted(row)}, expected {sorted(trained)} or {sorted(merged)}.")
    checked(name, row, _Row)
    if (merge := row.get("merge")) is not None:
        check_options(merge, yaml.safe_dump(row.get("options", {})))
    return Method(
        name,
        tuple(row["seeds"]),
        tuple(str(row.get("words", "")).split()),
        tuple(float(rate) for rate in row.get("rates", ())),
        row.get("of"),
        row.get("merge"),
        yaml.safe_dump(row.get("options", {}), default_flow_style=True).strip(),
        row.get("label"),
    )


Run = Callable[[str, Sequence[str]], None]
"""Runs a tool, by its name, with these words; raises when it fails."""


Facts = Callable[[Sequence[str]], Mapping[str, Any]]
"""What the result of a run with these words depends on; see :func:`mllm_lit.cells.facts`."""


class Study:
    """Runs what is missing of a grid, and collects what is there.

    Beside each run directory ``NAME.cell.json`` says what its result depends on. A cell of other settings or data is
    run anew, the old directory kept as ``NAME.old-1`` and so on; one of other code alone is kept and named.

    Args:
        grid: What to run.
        runs: Folder of the run directories.
        run: Starts a tool.
        facts: Tells what a result depends on.
    """

    def __init__(self, grid: Grid, runs: Path, run: Run, facts: Facts) -> None:
        self.grid, self.runs, self.run, self.facts = grid, runs / grid.name, run, facts

    def method(self, method: Method) -> dict[str, Any]:
        """Run and collect one method.

        Returns:
            The content of its result file.
        """
        if method.of is not None:
            return self._merged(method)
        choice = self._choose(method)
        cells = {seed: self._fit(method, choice["chosen"], seed) for seed in method.seeds}
        return {"method": method.name, "words": [*self.grid.words, *method.words], "learning_rate": choice} | {
            "seeds": {str(seed): _cell(summary) for seed, summary in cells.items()}
        }

    def _choose(self, method: Method) -> dict[str, Any]:
        if len(method.rates) == 1:
            return {"chosen": method.rates[0], "tried": {}}
        tried = {}
        for rate in sorted(method.rates):
            summary = self._fit(method, rate, self.grid.choosing_seed, choosing=True)
            tried[rate] = summary["target"]["after"]
        best = max(tried, key=lambda rate: (tried[rate], -rate))
        return {"chosen": best, "tried": {f"{rate:g}": score for rate, score in tried.items()}}

    def _fit(self, method: Method, rate: float, seed: int, choosing: bool = False) -> dict[str, Any]:
        version = f"{'choosing' if choosing else 'lr'}-{rate:g}-seed-{seed}"
        folder = self.runs / method.name / version
        given = (*self.grid.words, *(self.grid.choosing if choosing else ()), *method.words, *self.grid.rate)
        words = [word.replace("{lr}", f"{rate:g}") for word in given] + ["--seed_everything", str(seed)]
        self._check(folder, words)
        if not (folder / "summary.json").is_file():
            words += ["--output", str(self.runs), "--experiment", method.name, "--version", version]
            # Goes on with a cell that was cut off, and starts one that was not begun.
            self.run("fit", [*words, "--ckpt_path", "last"])
        summary: dict[str, Any] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        return summary | {"folder": str(folder)}

    def _check(self, folder: Path, words: Sequence[str]) -> None:
        """Put a directory aside that holds another cell than the grid asks for, begun or finished."""
        file, now = folder.with_name(f"{folder.name}.cell.json"), dict(self.facts(words))
        before = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        differs = ["nothing says what it was made from"] if before is None else changed(before, now)
        if folder.is_dir() and differs == ["code"]:
            print(f"{folder} was made by other code, and is taken as it is; remove it to have it run anew.")
            return
        if folder.is_dir() and differs:
            old = next(path for i in count(1) if not (path := folder.with_name(f"{folder.name}.old-{i}")).exists())
            folder.rename(old)
            if before is not None:
                file.rename(old.with_name(f"{old.name}.cell.json"))
            print(f"{folder} is of another cell ({'; '.join(differs)}): kept as {old.name}, run anew.")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(now, indent=1) + "\n", encoding="utf-8")

    def _merged(self, method: Method) -> dict[str, Any]:
        assert method.of is not None
        assert method.merge is not None
        trained = self.grid.methods[method.of]
        choice, seeds = self._choose(trained), {}
        for seed in method.seeds:
            summary = self._fit(trained, choice["chosen"], seed)
            folder = Path(summary["folder"])
            file = folder / "merges" / method.merge / "merge.json"
            if not file.is_file() or json.loads(file.read_text(encoding="utf-8")).get("asked") != method.options:
                self.run("merge", [str(folder), "--method", method.merge, "--options", method.options])
                content = json.loads(file.read_text(encoding="utf-8")) | {"asked": method.options}
                file.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            points = [_point(row) for row in json.loads(file.read_text(encoding="utf-8"))["points"]]
            wanted = [row for row in points if row["label"] == (method.label or method.merge)]
            if len(wanted) != 1:
                labels = [row["label"] for row in points]
                raise GridError(f"{method.name}: no point {method.label!r} among {labels}; set its label to one.")
            seeds[str(seed)] = _cell(summary) | wanted[0] | {"points": points}
        return {"method": method.name, "of": method.of, "merge": method.merge, "options": method.options} | {
            "learning_rate": choice,
            "seeds": seeds,
        }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two cells: settings by name with both values, ``data``, ``code``."""
    old, new = before["settings"], now["settings"]
    told = [
        f"{name}: {old.get(name)} -> {new.get(name)}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
    return told + [part for part in ("data", "code") if before[part] != now[part]]


def _cell(summary: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "target": summary["target"]["after"],
        "sources": {name: row["after"] for name, row in summary["sources"].items()},
        "tradeoff": summary["tradeoff"],
        "before": {
            "target": summary["target"]["before"],
            "sources": {name: row["before"] for name, row in summary["sources"].items()},
        },
        "parameters": summary["parameters"],
        "cost": summary["cost"],
        "versions": summary["versions"],
        "commit": summary["commit"],
    }


def _point(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("label", "target", "sources", "tradeoff")}


def mean_sd(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and unbiased standard deviation; ``None`` of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names of the points of which no other is at least as good in both coordinates and better in one.

    >>> pareto({"a": (1.0, 3.0), "b": (2.0, 2.0), "c": (1.0, 2.0)})
    ['a', 'b']
    """

    def beaten(x: float, y: float) -> bool:
        return any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())

    return [name for name, (x, y) in points.items() if not beaten(x, y)]


def summarise(results: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """A row per method: mean and standard deviation over its seeds of every score, and the time it took."""
    for result in results:
        cells = list(result["seeds"].values())
        columns = {"target": [cell["target"] for cell in cells]}
        columns |= {name: [cell["sources"][name] for cell in cells] for name in cells[0]["sources"]}
        columns |= {key: [cell["tradeoff"][key] for cell in cells] for key in TRADEOFF}
        yield {
            "method": result["method"],
            "seeds": len(cells),
            "learning_rate": result["learning_rate"]["chosen"],
            "scores": {name: mean_sd(values) for name, values in columns.items()},
            "seconds": statistics.fmean(cell["cost"]["train_seconds"] for cell in cells),
        }


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """The table of a study; the first row is the model before training."""
    target, before = _untrained(results)
    sources = list(before)
    heads = ["method", "seeds", "lr", "target", *sources, "A^S", "A^T", "H", "O", "seconds"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    zero = [target, *before.values()]
    zero += [value for key, value in tradeoff(zero[0], zero[1:]).items() if key in TRADEOFF]
    lines.append("| before training | | | " + " | ".join(f"{v:.1f}" for v in zero) + " | |")
    for row in sorted(summarise(results), key=lambda row: -row["scores"]["H"][0]):
        scores = [row["scores"][name] for name in ("target", *sources, *TRADEOFF)]  # merges list sources differently
        cells = [f"{m:.1f}" if sd is None else f"{m:.1f} ± {sd:.1f}" for m, sd in scores]
        head = [row["method"], str(row["seeds"]), f"{row['learning_rate']:g}"]
        lines.append("| " + " | ".join([*head, *cells, f"{row['seconds']:.0f}"]) + " |")
    return "\n".join(lines)


def verdicts(claims: Sequence[Claim], results: Sequence[Mapping[str, Any]]) -> str:
    """The table of claims: the difference of the two methods seed by seed, and how many seeds show what was said."""
    cells = {result["method"]: result["seeds"] for result in results}
    lines = ["| claim | made in | score | difference | seeds that show it | shows here |", "|---|---|---|---|---|---|"]
    for claim in claims:
        higher, lower = cells.get(claim.higher, {}), cells.get(claim.lower, {})
        seeds = [seed for seed in higher if seed in lower]
        if not seeds:
            continue
        ends = [[_score(cell, claim.score) for cell in (higher[seed], lower[seed])] for seed in seeds]
        differences = [one - other for one, other in ends]
        agree = sum(difference > 0 for difference in differences)
        mean, sd = mean_sd(differences)
        spread = "" if sd is None else f" ± {sd:.1f}"
        word = {len(seeds): "yes", 0: "no"}.get(agree, "mixed")
        row = (claim.says, claim.source, claim.score.replace("_", "^"), f"{mean:+.1f}{spread}")
        lines.append("| " + " | ".join((*row, f"{agree} of {len(seeds)}", word)) + " |")
    return "\n".join(lines)


def _score(cell: Mapping[str, Any], name: str) -> float:
    score: float = cell["target"] if name == "target" else cell["tradeoff"][name]
    return score


def write_report(grid: Grid, folder: Path, page: Path) -> None:
    """Put table and plot of the results in ``folder`` into a Markdown page, between the two marks of the grid's name.

    Raises:
        GridError: The page has no such marks.
    """
    from mllm_lit.plots import scatter

    files = [folder / f"{name}.json" for name in grid.methods]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in files if file.is_file()]
    text = page.read_text(encoding="utf-8")
    start, end = f"<!-- {grid.name}: begin -->", f"<!-- {grid.name}: end -->"
    if start not in text or end not in text:
        raise GridError(f"{page} lacks the marks {start!r} and {end!r}, between which the results go.")
    body = "No cell has been run yet."
    if results:
        picture = page.with_name(f"{page.stem}_{grid.name}.png")
        figure = scatter(f"{grid.name}: target against sources", "$A^S$", "$A^T$", series(results))
        figure.savefig(picture, metadata={"Software": None})
        body = f"{markdown(results)}\n\n![A^T over A^S, one point a method, the Pareto front joined]({picture.name})"
        if grid.claims:
            body += f"\n\n{verdicts(grid.claims, results)}"
    before, after = text.split(start)[0], text.split(end)[1]
    page.write_text(f"{before}{start}\n{body}\n{end}{after}", encoding="utf-8")


def series(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The Pareto plot: a point per method, the front joined, the WiSE-FT sweeps as a line of their own."""
    from mllm_lit.plots import Series

    rows = {row["method"]: row["scores"] for row in summarise(results)}
    places = {name: (scores["A_S"][0], scores["A_T"][0]) for name, scores in rows.items()}
    front = sorted(pareto(places), key=lambda name: places[name])
    target, sources = _untrained(results)
    start = (statistics.fmean(sources.values()), target, "before")
    plot = {
        "Pareto front": Series([(*places[name], name) for name in front]),
        "other methods": Series([(*at, name) for name, at in places.items() if name not in front], joined=False),
        "before training": Series([start], joined=False),
    }
    swept = {}
    for result in results:
        sweeps = [cell["points"] for cell in result["seeds"].values() if "points" in cell]
        labels = [row["label"] for row in sweeps[0] if row["label"].startswith("alpha ")] if sweeps else []
        if labels:
            line = [
                tuple(statistics.fmean(_at(points, label)[key] for points in sweeps) for key in ("A_S", "A_T"))
                for label in labels
            ]
            swept[f"{result['method']}, swept"] = Series([(x, y, "") for x, y in line])
    return swept | plot  # points of methods over the lines


def _untrained(results: Sequence[Mapping[str, Any]]) -> tuple[float, dict[str, float]]:
    """Target and sources before training: a mean, since each seed scores its own sample of the sources."""
    most = max(results, key=lambda result: len(result["seeds"]))
    starts = [cell["before"] for cell in most["seeds"].values()]
    sources = {name: statistics.fmean(start["sources"][name] for start in starts) for name in starts[0]["sources"]}
    return statistics.fmean(start["target"] for start in starts), sources


def _at(points: Sequence[Mapping[str, Any]], label: str) -> Mapping[str, float]:
    found: Mapping[str, float] = next(row["tradeoff"] for row in points if row["label"] == label)
    return found
