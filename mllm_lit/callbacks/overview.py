"""The curves that one looks for first: A^S, A^T, H, target, sources, and what is forgotten of each source."""

from collections.abc import Mapping

from mllm_lit.evaluation.evaluator import Evaluator, scores_of
from mllm_lit.evaluation.sets import Result, Scores
from mllm_lit.metrics import forgetting, tradeoff


def overview(headlines: Mapping[str, str], start: Scores | None, now: Scores) -> dict[str, float]:
    """The figures of one step, by tag; capital letters stand ahead of others in TensorBoard.

    Args:
        headlines: Set -> name of its score; the target comes first.
        start: Scores before training, of the same samples; without them nothing is said of forgetting.
        now: Scores at the step.
    """
    points = {name: now[name][key] for name, key in headlines.items()}
    target, *sources = points
    figures = {f"Overview/target/{target}": points[target]}
    figures |= {f"Overview/source/{name}": points[name] for name in sources}
    if sources:
        found = tradeoff(points[target], [points[name] for name in sources])
        figures |= {f"Overview/{key}": found[key] for key in ("A_S", "A_T", "H")}
    for name in sources if start is not None else ():
        lost = forgetting(start[name][headlines[name]], points[name])  # type: ignore[index]
        figures[f"Overview/forgotten/{name}"] = lost["points"]
    return figures


def known_scores(evaluator: Evaluator, tested: Evaluator, result: Result) -> Scores:
    """Scores of the sets whose samples have all been answered in an evaluation of larger sets.

    Args:
        evaluator: Of the sets to be scored.
        tested: Of the sets that were evaluated.
        result: What came out of it.
    """
    larger = {one.name: {sample.id: sample for sample in one.samples} for one in tested.sets}
    scores = {}
    for one in evaluator.sets:
        answers = {record["id"]: record for record in result.records[one.name]}
        # Splits may name their rows alike, so the samples themselves are compared.
        if all(larger[one.name].get(sample.id) == sample and sample.id in answers for sample in one.samples):
            scores[one.name] = scores_of(one, one.samples, [answers[sample.id] for sample in one.samples])
    return scores
