"""Which orderings of methods agree between a model that learned from us and one that did not.

    python benchmarks/two_tiers.py

It reads the kept results of the studies on both embedded models, takes methods that both have, and fills the tables
between ``<!-- two_tiers: begin -->`` and ``<!-- two_tiers: end -->`` of docs/studies/smollm2.md. A score's agreement is
Spearman's rank correlation over the methods' means of the seeds that all of them have, and the number of pairs of
methods that stand in the same order on both, each by the seeds that the two have in common. Clear pairs are those whose
difference has one sign with every such seed, on both models, of at least two. Equal scores are in no order.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from mllm_lit.metrics import normalised
from mllm_lit.reports.page import Score, Table, markdown
from mllm_lit.reports.scores import rank_correlation
from mllm_lit.studies import read_results

REPOSITORY = Path(__file__).parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results" / "studies"
PAGE = REPOSITORY / "docs" / "studies" / "smollm2.md"
TIERS = {
    "embedded": ("scienceqa", "objectives_methods"),
    "SmolLM2": ("shuffled", "smollm2_methods"),
}
"""Model -> target, and the study on it."""
SCORES = {"target": "target", "sources, % of before": "A_S_normalised", "H": "H", "O": "O"}
MARKED = re.compile(r"(<!-- two_tiers: begin -->\n).*?(<!-- two_tiers: end -->)", re.S)

Runs = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Score -> method -> seed -> value."""


def scores(summary: Mapping[str, Any]) -> dict[str, float | None]:
    """Those that are compared."""
    rows = summary["sources"].values()
    kept = normalised([row["before"] for row in rows], [row["after"] for row in rows])
    found = {"target": summary["target"]["after"], "A_S_normalised": kept, **summary["tradeoff"]}
    return {name: found[name] for name in SCORES.values()}


def runs(target: str, study: str) -> Runs:
    """What is kept of one model."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SCORES.values()}
    results = read_results(RESULTS / f"{study}.json")
    cells = [] if results is None else [one for one in results.cells if one.labels["target"] == target]
    for method in {cell.labels["method"] for cell in cells}:
        own = {cell.labels["seed"]: scores(cell.summary) for cell in cells if cell.labels["method"] == method}
        for name in found:
            found[name][method] = {seed: value for seed, told in own.items() if (value := told[name]) is not None}
    return found


def order(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[int, bool]:
    """1 where the mean of the first is higher, −1 where it is lower, over the seeds that both have, else 0; and whether
    each of these seeds, of at least two, says the same.
    """
    apart = [one[seed] - other[seed] for seed in one if seed in other]
    signs = [(value > 0) - (value < 0) for value in (sum(apart), *apart)]
    return signs[0], len(apart) > 1 and signs[0] != 0 and len(set(signs)) == 1


def means(tier: Mapping[str, Mapping[str, float]], methods: Sequence[str]) -> list[float]:
    """Of each method, over the seeds that all of them have; none where there is no such seed."""
    seeds = set.intersection(*(set(tier[method]) for method in methods)) if methods else set()
    return [fmean(tier[method][seed] for seed in seeds) for method in methods if seeds]


def compare(first: Runs, second: Runs) -> tuple[Table, Table]:
    """The methods' scores side by side, and how far their orderings agree."""
    methods = sorted(set(first["target"]) & set(second["target"]))
    head = ["method", *(f"{heading}: {tier}" for heading in SCORES for tier in TIERS)]
    rows = [
        [method, *(Score(list(tier[name][method].values())) for name in SCORES.values() for tier in (first, second))]
        for method in methods
    ]
    agreement: list[list[Any]] = []
    for heading, name in SCORES.items():
        both = [*zip(means(first[name], methods), means(second[name], methods), strict=False)]
        pairs = [
            (order(first[name][a], first[name][b]), order(second[name][a], second[name][b]))
            for a, b in combinations(methods, 2)
        ]
        clear = [(one[0], two[0]) for one, two in pairs if one[1] and two[1]]
        ordered = [(one[0], two[0]) for one, two in pairs if one[0] and two[0]]
        told = [f"{sum(one == two for one, two in some)} of {len(some)}" for some in (ordered, clear)]
        agreement.append([heading, rank_correlation(both), *told])
    note = f"{len(methods)} methods, means over each one's seeds; orders below are by seeds that are compared alike."
    return (
        Table("Methods on both models", head, rows, note, "two_tiers"),
        Table("Do orderings agree?", ["score", "rank correlation", "pairs", "clear pairs"], agreement, "", "agreement"),
    )


def filled(text: str) -> str:
    """The page with the tables of the results that are kept."""
    first, second = (runs(target, study) for target, study in TIERS.values())
    tables = "\n\n".join(map(markdown, compare(first, second)))
    return MARKED.sub(lambda found: f"{found[1]}{tables}\n\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
