"""Scores of merged weights as a table."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from mllm_lit.metrics import tradeoff

Scores = Mapping[str, Mapping[str, float]]


def point(label: str, scores: Scores, headlines: Mapping[str, str], others: Mapping[str, str]) -> dict[str, Any]:
    """One set of weights in the form of the JSON.

    Args:
        label: What the weights are.
        scores: Set -> score name -> points.
        headlines: Set -> the score reported for it; the target comes first, the rest are sources.
        others: Likewise, of sets that are neither.
    """
    target, *sources = headlines
    values = {name: scores[name][headline] for name, headline in (*headlines.items(), *others.items())}
    rest = [values[name] for name in sources]
    return {
        "label": label,
        "target": values[target],
        "sources": {name: values[name] for name in sources},
        "others": {name: values[name] for name in others},
        "tradeoff": tradeoff(values[target], rest) if rest else None,
        "scores": {name: dict(row) for name, row in scores.items()},
    }


def table(title: str, points: list[dict[str, Any]], target: str) -> Table:
    """A row per set of weights: target, sources, others, A^S, A^T, H, O."""
    summary = ("A_S", "A_T", "H", "O") if points[0]["tradeoff"] else ()
    out = Table(title=title, title_justify="left")
    for heading in ("weights", f"{target} (target)", *points[0]["sources"], *points[0]["others"], *summary):
        out.add_column(heading, justify="left" if heading == "weights" else "right")
    for row in points:
        values = [row["target"], *row["sources"].values(), *row["others"].values()]
        values += [row["tradeoff"][key] for key in summary]
        out.add_row(row["label"], *(f"{value:.1f}" for value in values))
    return out
