"""Which orderings of methods agree between a model that learned from us and one that did not.

    python benchmarks/two_tiers.py

It reads the kept results of the studies on both embedded models, takes methods that both have, and fills the tables
between ``<!-- two_tiers: begin -->`` and ``<!-- two_tiers: end -->`` of docs/studies/smollm2.md. A score's agreement is
Spearman's rank correlation over the methods' means, and the number of pairs of methods that stand in the same order on
both. Clear pairs are those whose difference has one sign with every seed, on both models, of at least two seeds.
"""

import re
from collections.abc import Mapping
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
    "embedded": ("scienceqa", ("spider_methods", "objectives_methods")),
    "SmolLM2": ("shuffled", ("smollm2_methods",)),
}
"""Model -> target, and the studies on it; of a method that two have, the last one's runs are taken."""
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


def runs(target: str, studies: tuple[str, ...]) -> Runs:
    """What is kept of one model."""
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in SCORES.values()}
    for study in studies:
        results = read_results(RESULTS / f"{study}.json")
        cells = [] if results is None else [one for one in results.cells if one.labels["target"] == target]
        for method in {cell.labels["method"] for cell in cells}:
            own = {cell.labels["seed"]: scores(cell.summary) for cell in cells if cell.labels["method"] == method}
            for name in found:
                found[name][method] = {seed: value for seed, told in own.items() if (value := told[name]) is not None}
    return found


def order(one: Mapping[str, float], other: Mapping[str, float]) -> tuple[bool, bool]:
    """Whether the mean of the first is higher, and whether that is so, or not so, with every seed that both have."""
    signs = [one[seed] > other[seed] for seed in one if seed in other]
    return fmean(one.values()) > fmean(other.values()), len(signs) > 1 and len(set(signs)) == 1


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
        means = [(fmean(first[name][one].values()), fmean(second[name][one].values())) for one in methods]
        pairs = [
            (order(first[name][a], first[name][b]), order(second[name][a], second[name][b]))
            for a, b in combinations(methods, 2)
        ]
        clear = [(one[0], two[0]) for one, two in pairs if one[1] and two[1]]
        agree = sum(one[0] == two[0] for one, two in pairs)
        told = f"{sum(one == two for one, two in clear)} of {len(clear)}"
        agreement.append([heading, rank_correlation(means), f"{agree} of {len(pairs)}", told])
    note = f"{len(methods)} methods, means over seeds."
    return (
        Table("Methods on both models", head, rows, note, "two_tiers"),
        Table("Do orderings agree?", ["score", "rank correlation", "pairs", "clear pairs"], agreement, "", "agreement"),
    )


def filled(text: str) -> str:
    """The page with the tables of the results that are kept."""
    first, second = (runs(target, studies) for target, studies in TIERS.values())
    tables = "\n\n".join(map(markdown, compare(first, second)))
    return MARKED.sub(lambda found: f"{found[1]}{tables}\n\n{found[2]}", text)


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
