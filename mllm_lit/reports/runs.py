"""The report of one finished run, and of several side by side."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mllm_lit.parsing import flatten
from mllm_lit.reports.page import Block, Details, Gap, Page, Score, Section, Table, Text, curves, slug
from mllm_lit.reports.predictions import (
    RIGHT,
    Pair,
    Samples,
    by_type,
    over_scored,
    pairs_of,
    right,
    samples_read,
    shown,
)
from mllm_lit.reports.scores import Difference, ReportError, scores_of, sets_of
from mllm_lit.summary import PARTS, lmms_eval_rows

SHOWN = 6
"""Predictions of each set that are shown as learned, and as forgotten."""
ELSEWHERE = ("config", "output", "experiment", "version", "keep_before", "ckpt_path")
"""Settings that have no part in what a run finds."""
FLIPS = ("type", "samples", "right before", "right after", "learned", "forgotten")
HEADINGS = {"A_S": "A^S", "A_T": "A^T"}


@dataclass
class Run:
    """A finished run, read from its directory.

    Attributes:
        folder: Its directory.
        name: In tables.
        summary: Its ``summary.json``.
        config: Its ``config.yaml``; empty where there is none.
        samples: Where the samples of its sets are found.
        after: The folder of the answers after training.
    """

    folder: Path
    name: str
    summary: dict[str, Any]
    config: dict[str, Any]
    samples: Samples
    after: Path

    @property
    def settings(self) -> dict[str, Any]:
        """Those that a result depends on, by dotted name."""
        return flatten({name: value for name, value in self.config.items() if name not in ELSEWHERE})

    @cached_property
    def pairs(self) -> dict[str, list[Pair]]:
        """Set -> its samples' records before and after training."""
        before = self.folder / "predictions" / "before"
        return {
            name: pairs_of(before / f"{name}.jsonl", self.after / f"{name}.jsonl") for name in sets_of(self.summary)
        }


def read_run(folder: Path, name: str = "", trust: Sequence[str] = (), samples: Samples | None = None) -> Run:
    """Read a finished run.

    Args:
        folder: Its directory.
        name: In tables; its folder's without one.
        trust: Modules, beside this package, whose classes its configuration may name.
        samples: Where those of its sets are; without it they are read again where the run's settings say.

    Raises:
        ReportError: There is no such directory, or the run is not finished.
    """
    import yaml

    if not folder.is_dir():
        raise ReportError(f"There is no folder {folder} (tried {folder.absolute()}). Name the directory of a run.")
    file = folder / "summary.json"
    if not file.is_file():
        there = ", ".join(sorted(entry.name for entry in folder.iterdir())) or "nothing"
        begun = (folder / "config.yaml").is_file()
        hint = "the run has not finished; go on with it by --ckpt_path last" if begun else "it is no run directory"
        raise ReportError(f"{folder} has no summary.json (there is {there}): {hint}.")
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
        sets_of(summary)
    except (ValueError, TypeError, KeyError) as error:
        raise ReportError(f"{file} is not what a run writes ({error!r}). Copy it again.") from error
    path = folder / "config.yaml"
    try:
        config = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise ReportError(f"{path} is no readable YAML: {' '.join(str(error).split())}") from error
    read = samples or samples_read(config, path, trust)
    return Run(folder, name or folder.name, summary, config, read, folder / "predictions" / "after")


def write_run(folder: Path, samples: Samples | None = None) -> Path:
    """Write a run's own page into its directory.

    Args:
        folder: The run directory.
        samples: See :func:`read_run`.
    """
    run = read_run(folder, samples=samples)
    (folder / "report.html").write_text(page_of([run]).html(), encoding="utf-8")
    return folder / "report.html"


def write_runs(
    folders: Sequence[Path], out: Path | None = None, latex: bool = False, trust: Sequence[str] = ()
) -> Path:
    """Write the report of a run, or of several.

    Args:
        folders: Run directories; others are compared with the first.
        out: Where to; default: ``report`` in the first run's directory.
        latex: Tables as LaTeX, too.
        trust: Modules, beside this package, whose classes the runs' configurations may name.

    Raises:
        ReportError: A run cannot be read, its predictions are not whole, or the runs are of different targets.
    """
    places = [folder.absolute() for folder in folders]
    common = os.path.commonpath([place.parent for place in places])
    runs = [read_run(place, os.path.relpath(place, common), trust) for place in places]
    targets = {run.summary["target"]["name"] for run in runs}
    if len(targets) > 1:
        told = ", ".join(f"{run.folder}: {run.summary['target']['name']}" for run in runs)
        raise ReportError(f"The runs have different targets ({told}), so they cannot be compared. Name runs of one.")
    for run in runs:
        run.pairs  # noqa: B018
    return page_of(runs).write(out or places[0] / "report", latex)


def page_of(runs: Sequence[Run]) -> Page:
    """What there is to say of some runs."""
    first = runs[0].summary
    parts = [str(first[key]) for key in PARTS if first.get(key)]
    if len(runs) > 1:
        title = f"{len(runs)} runs on {first['target']['name']}"
        page = Page(title, f"All are compared with the first, {runs[0].name}.")
    else:
        page = Page(f"{first['experiment']}: {runs[0].name}", f"{' · '.join(parts)} · seed {first['seed']}")
    many = [Section("Comparison", comparison(runs))] if len(runs) > 1 else []
    page.sections = [
        *many,
        Section("Scores", [block for run in runs for block in scores(run, runs)]),
        Section("Learned and forgotten", [block for run in runs for block in flips(run, runs)]),
        Section("During training", [during({run.name: [run.summary] for run in runs})]),
        Section("Cost", [costs(runs)]),
        Section("Predictions", [Details(run.name, predictions(run, SHOWN)) for run in runs]),
        Section("Settings", settings(runs)),
    ]
    return page


def titled(
    title: str, run: Run, runs: Sequence[Run], head: Sequence[str], rows: Sequence[Sequence[Any]], **more: Any
) -> Table:
    """A table of one run, which is named where there are several."""
    whole = f"{title}: {run.name}" if len(runs) > 1 else title
    return Table(whole, head, rows, name=slug(whole), **more)


def scores(run: Run, runs: Sequence[Run]) -> list[Block]:
    """Before and after, set by set and type by type."""
    told, rows = run.summary.get("scores", {}), []
    for name, row in sets_of(run.summary).items():
        ends = [Score([row[end]]) for end in ("before", "after")]
        nll = [Score([row[end]], 3) if row.get(end) is not None else None for end in ("nll_before", "nll_after")]
        change = Gap(Difference(row["after"] - row["before"], None, None, 1))
        rows.append([name, row["metric"], *ends, change, *nll])
    head = ("set", "score", "before", "after", "change", "NLL before", "NLL after")
    trade = run.summary["tradeoff"] or {}
    note = " · ".join(f"{HEADINGS.get(key, key)} {trade[key]:.1f}" for key in ("A_S", "A_T", "H", "O") if key in trade)
    every = [
        [name, key, *(Score([told[end][name][key]], 3 if key == "nll" else 1) for end in ("before", "after"))]
        for name in told.get("after", {})
        for key in told["after"][name]
    ]
    more = titled("All scores", run, runs, ("set", "score", "before", "after"), every)
    theirs = [
        [task, key, *(None if value is None else Score([value], 4) for value in ends)]
        for task, key, *ends in lmms_eval_rows(run.summary)
    ]
    head_of_theirs = ("task", "score", "before", "after")
    harness = titled("lmms-eval", run, runs, head_of_theirs, theirs, note="as lmms-eval gives them")
    return [
        titled("Target and sources", run, runs, head, rows, note=note),
        *([harness] if theirs else []),
        Details(more.title, [more]),
    ]


def flips(run: Run, runs: Sequence[Run]) -> list[Block]:
    """How many samples of each type turned right and wrong."""
    rows = [[name, *row] for name, pairs in run.pairs.items() if scored(pairs) for row in by_type(pairs)]
    without = [name for name, pairs in run.pairs.items() if not scored(pairs)]
    said = f" Answers of {', '.join(without)} have no scores of their own." if without else ""
    note = f"learned: wrong before training, right after it; forgotten: right, then wrong; right: {RIGHT} or more."
    table = titled("Samples that turned", run, runs, ("set", *FLIPS), rows, note=note + said)
    kept = {True: 1, False: 0, None: None}
    every = [
        [name, a["id"], "|".join(a.get("labels", [])), kept[right(a)], kept[right(b)], a["question"], a["answer"]]
        + [a["prediction"], b["prediction"]]
        for name, pairs in run.pairs.items()
        for a, b in pairs
        if right(a) != right(b)
    ]
    head = ("set", "id", "type", "right before", "right after", "question", "answer", "before", "after")
    return [table, titled("Every sample that turned", run, runs, head, every, long=True)]


def scored(pairs: Sequence[Pair]) -> bool:
    """Whether the answers of a set have scores of their own."""
    return any(right(one) is not None for one, _ in pairs)


def comparison(runs: Sequence[Run]) -> list[Block]:
    """Scores side by side, differences to the first run, and where answers differ from its."""
    first, *others = runs
    names = [*dict.fromkeys(name for run in runs for name in sets_of(run.summary))]
    columns = [*names, "A_S", "A_T", "H", "O"]
    found = {run.name: scores_of(run.summary) for run in runs}
    rows = [[name, *(Score([one[key]]) if key in one else None for key in columns)] for name, one in found.items()]
    blocks: list[Block] = [Table("Scores", ["run", *(HEADINGS.get(key, key) for key in columns)], rows, name="scores")]
    gaps, turns, apart = [], [], []
    for run in others:
        row: list[Any] = [run.name]
        for name in names:
            try:
                after = pairs_of(run.after / f"{name}.jsonl", first.after / f"{name}.jsonl")
            except ReportError as error:
                apart.append(f"{run.name}: {error}")
                row.append(None)
                continue
            gap = over_scored(after)
            row.append(None if gap is None else Gap(gap))
            turns += [[run.name, name, *one] for one in by_type(after)] if gap else []
        gaps.append(row)
    note = (
        f"Mean over the samples, and the 95 % interval of a paired bootstrap over them: the noise of the test set "
        f"alone, not of another seed. {' '.join(apart)}"
    )
    head = ("run", "set", *FLIPS[:2], "right here", "right in first", "right in first alone", "right here alone")
    return [
        *blocks,
        Table(f"Differences to {first.name}", ["run", *names], gaps, note.strip(), "differences"),
        Table(f"Samples that {first.name} answers otherwise", head, turns, name="otherwise"),
    ]


def during(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> Block:
    """Scores of all sets over the steps, and the target's NLL.

    Args:
        groups: Name -> summaries, one a seed.
    """
    panels: dict[str, dict[str, dict[int, list[float]]]] = {}
    for name, summaries in groups.items():
        for summary in summaries:
            for one in summary.get("during") or []:
                told = {
                    f"{key}, {row['metric']}": one["scores"][key][row["metric"]]
                    for key, row in sets_of(summary).items()
                    if key in one["scores"]
                }
                target = summary["target"]["name"]
                told[f"{target}, NLL"] = one["scores"][target]["nll"]
                for panel, value in told.items():
                    panels.setdefault(panel, {}).setdefault(name, {}).setdefault(one["step"], []).append(value)
    return curves(panels) if panels else Text("There were no validations during training (trainer.val_check_interval).")


def cost_row(summaries: Sequence[Mapping[str, Any]]) -> list[Any]:
    """Cells of :data:`COST`."""

    def each(name: str, digits: int = 0, scale: float = 1) -> Score | None:
        values = [summary["cost"][name] / scale for summary in summaries if name in summary["cost"]]
        return Score(values, digits) if values else None

    count = summaries[0]["parameters"]
    return [
        *(each("steps"), each("train_seconds"), each("tokens_per_second")),
        *(each("peak_memory_bytes", 2, 2**30), each("train_flops", 1, 1e12)),
        *(count["trainable"], f"{100 * count['trainable'] / count['total']:.2f}"),
    ]


COST = ("steps", "training, s", "tokens/s", "peak memory, GiB", "TFLOP", "trained parameters", "trained, %")


def costs(runs: Sequence[Run]) -> Table:
    """Time, memory and parameters."""
    rows = [[run.name, *cost_row([run.summary])] for run in runs]
    return Table("Cost of training, evaluation left out", ["run", *COST], rows, name="cost")


def predictions(run: Run, count: int) -> list[Block]:
    """Some answers of each set."""
    return [block for name, pairs in run.pairs.items() for block in shown(name, pairs, run.samples, count)]


def settings(runs: Sequence[Run]) -> list[Block]:
    """Those in which the runs differ, all others, and what code and libraries they ran on."""
    every = [run.settings for run in runs]
    differ, same = differing(every)
    facts = [[run.name, *made_by(run.summary)] for run in runs]
    blocks: list[Block] = [Table("Code", ("run", "commit", "precision", "versions"), facts)]
    if len(runs) > 1:
        rows = [[name, *(str(one.get(name, "")) for one in every)] for name in differ]
        blocks.insert(0, Table("Settings that differ", ["setting", *(run.name for run in runs)], rows, name="settings"))
    if not any(every):
        return [*blocks, Text("There is no config.yaml, so the settings are not known.")]
    return [*blocks, Details(same.title, [same])]


def differing(every: Sequence[Mapping[str, Any]]) -> tuple[list[str], Table]:
    """Names of the settings in which some runs differ, and a table of the others."""
    names = list(dict.fromkeys(name for one in every for name in one))
    differ = [name for name in names if len({repr(one.get(name, ...)) for one in every}) > 1]
    rows = [[name, str(every[0][name])] for name in names if name not in differ]
    return differ, Table(f"{len(rows)} settings" + " of all" * (len(every) > 1), ("setting", "value"), rows)


def made_by(summary: Mapping[str, Any]) -> list[str]:
    """Commit, precision and versions of a run."""
    versions = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
    return [summary["commit"] or "", summary.get("precision", {}).get("used", ""), versions]
