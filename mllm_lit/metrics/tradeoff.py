"""What was learned against what was forgotten."""

from collections.abc import Sequence


def tradeoff(target: float, sources: Sequence[float]) -> dict[str, float]:
    """Summary of one run after fine-tuning (SPIDER, arXiv 2411.10928, section 4).

    Args:
        target: The target's score, in points.
        sources: The held-out sources' scores, in points.

    Returns:
        ``A_S`` (mean of the sources), ``A_T`` (target), ``H`` (their harmonic mean) and ``O`` (their arithmetic mean).

    Raises:
        ValueError: There is no source, or a score is negative (no harmonic mean is defined).

    >>> tradeoff(80.0, [50.0, 70.0])
    {'A_S': 60.0, 'A_T': 80.0, 'H': 68.57142857142857, 'O': 70.0}
    """
    if not sources:
        raise ValueError("no source was scored; give at least one held-out source to measure forgetting")
    if min(target, *sources) < 0:
        raise ValueError(f"scores must not be negative: target {target}, sources {list(sources)}")
    a_s, a_t = sum(sources) / len(sources), target
    total = a_s + a_t
    return {"A_S": a_s, "A_T": a_t, "H": 2 * a_s * a_t / total if total else 0.0, "O": total / 2}


def normalised(before: Sequence[float], after: Sequence[float]) -> float | None:
    """Mean over the sources of their score in per cent of what it was, so that no source weighs more by its scale.

    Args:
        before: The sources' scores before fine-tuning.
        after: Likewise, after it.

    Returns:
        ``None`` if a source had nothing before.

    >>> normalised([100.0, 50.0], [75.0, 50.0])
    87.5
    """
    if not before or not all(before):
        return None
    return sum(100 * a / b for b, a in zip(before, after, strict=True)) / len(before)


def forgetting(before: float, after: float) -> dict[str, float]:
    """What a source lost: in points, and in per cent of its score before (0 if that was 0).

    >>> forgetting(80.0, 60.0)
    {'points': 20.0, 'percent': 25.0}
    """
    lost = before - after
    return {"points": lost, "percent": 100 * lost / before if before else 0.0}
