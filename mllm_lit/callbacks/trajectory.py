"""The run's picture: the target's score against the sources', from step to step."""

from collections.abc import Mapping, Sequence
from functools import partial

import lightning as L

from mllm_lit.evaluation.sets import Scores
from mllm_lit.loggers import log_picture
from mllm_lit.plots import Series, scatter


def draw_trajectory(
    trainer: L.Trainer,
    headlines: Mapping[str, str],
    before: Scores | None,
    during: Sequence[tuple[int, Scores]],
    after: Scores | None,
) -> None:
    """Log the picture ``forgetting/target_against_sources``, if the run has sources.

    Args:
        trainer: Whose loggers get it.
        headlines: Set -> name of its score; the target comes first.
        before: Scores of the backbone on whole test splits.
        during: (step, scores) on the sets of the validations.
        after: Scores of the trained model on whole test splits.
    """
    target, *sources = headlines.items()
    series = trajectory(target, sources, before, during, after)
    if sources and any(one.points for one in series.values()):
        draw = partial(scatter, "Target against sources", "source, points", f"{target[0]}, points", series)
        log_picture(trainer, "forgetting/target_against_sources", draw, trainer.global_step)


def trajectory(
    target: tuple[str, str],
    sources: Sequence[tuple[str, str]],
    before: Scores | None,
    during: Sequence[tuple[int, Scores]],
    after: Scores | None,
) -> dict[str, Series]:
    """A line per source and one for their mean over the validations; before and after apart, on whole splits.

    Args:
        target: Name of the set and of its headline score.
        sources: Likewise.
        before: See :func:`draw_trajectory`, as the two others.
        during: Evaluations in the order of their steps.
        after: Those at the end.
    """

    def mean(scores: Scores) -> float:
        return sum(scores[name][key] for name, key in sources) / len(sources)

    name, headline = target
    result = {
        source: Series([(scores[source][key], scores[name][headline], "") for _, scores in during])
        for source, key in sources
    }
    if sources:
        every = 1 + len(during) // 12  # more steps than these cannot be read
        named = {step for step, _ in during[::-1][::every]}
        result["mean"] = Series(
            [(mean(scores), scores[name][headline], f"{step}" * (step in named)) for step, scores in during]
        )
        whole = [(scores, label) for scores, label in ((before, "before"), (after, "after")) if scores is not None]
        result["mean, test splits"] = Series(
            [(mean(scores), scores[name][headline], label) for scores, label in whole], joined=False
        )
    return result
