"""Caption scores, as pycocoevalcap computes them after its tokenizer."""

import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import AnswerMetric
from mllm_lit.metrics.hallucination import chair_scores, mentioned
from mllm_lit.metrics.ptb import tokenize_all

DEFAULT = ("bleu", "rouge_l", "cider")
Record = tuple[str, tuple[str, ...], str]


def _bleu() -> Any:
    from pycocoevalcap.bleu.bleu import Bleu

    return Bleu(4)


def _rouge() -> Any:
    from pycocoevalcap.rouge.rouge import Rouge

    return Rouge()


def _cider() -> Any:
    from pycocoevalcap.cider.cider import Cider

    return Cider()


def _meteor() -> Any:
    from pycocoevalcap.meteor.meteor import Meteor

    return Meteor()


def _spice() -> Any:
    from pycocoevalcap.spice.spice import Spice

    return Spice()


SCORERS: dict[str, Callable[[], Any]] = {
    "bleu": _bleu,
    "meteor": _meteor,
    "rouge_l": _rouge,
    "cider": _cider,
    "spice": _spice,
}


def unavailable(scorers: Sequence[str] = tuple(SCORERS)) -> dict[str, str]:
    """Those of the scorers that cannot run on this machine, each with what it lacks and how to get it.

    Raises:
        ValueError: A name is no scorer.
    """
    unknown = sorted(set(scorers) - set(SCORERS))
    if unknown:
        raise ValueError(f"no caption scorer {unknown}; there are: {', '.join(SCORERS)}")
    missing = {}
    for name in scorers:
        if name in ("meteor", "spice") and shutil.which("java") is None:
            missing[name] = (
                "needs Java, which is not on the PATH; install it with: apt-get install default-jre-headless"
            )
        elif name == "spice" and not _spice_models():
            missing[name] = (
                "needs the Stanford CoreNLP 3.6.0 models, which are not there; with a network, fetch them with: "
                "python -c 'from pycocoevalcap.spice.spice import Spice; Spice()'"
            )
    return missing


def _spice_models() -> bool:
    spec = find_spec("pycocoevalcap.spice")
    if spec is None or spec.origin is None:
        return False
    return len(list((Path(spec.origin).parent / "lib").glob("stanford-corenlp-3.6.0*.jar"))) >= 2


def caption_scores(
    predictions: Sequence[str], references: Sequence[Sequence[str]], scorers: Sequence[str] = DEFAULT
) -> dict[str, float]:
    """Scores of captions over a whole split, on pycocoevalcap's own scale (CIDEr 0-10, the others 0-1).

    CIDEr weighs n-grams by how rare they are in the references given here, so a part of a split has other scores
    than the whole, and a single image has a CIDEr of 0.

    Args:
        predictions: One caption per image.
        references: The captions of each image, at least one.
        scorers: Of ``bleu`` (gives ``bleu_1`` ... ``bleu_4``), ``meteor``, ``rouge_l``, ``cider``, ``spice``.

    Raises:
        ValueError: The lists do not match, an image has no reference, or a scorer is unknown.
        RuntimeError: A scorer cannot run here; see :func:`unavailable`.
    """
    if len(predictions) != len(references) or not predictions:
        raise ValueError(f"{len(predictions)} captions for {len(references)} images; they must be pairs, at least one")
    bare = [number for number, captions in enumerate(references) if not captions]
    if bare:
        raise ValueError(f"images at positions {bare[:5]} have no reference caption")
    lacking = unavailable(scorers)
    if lacking:
        raise RuntimeError("; ".join(f"{name} {reason}" for name, reason in lacking.items()))
    tokens = iter(tokenize_all([caption for captions in references for caption in captions]))
    truth = {i: [next(tokens) for _ in captions] for i, captions in enumerate(references)}
    said = {i: [caption] for i, caption in enumerate(tokenize_all(predictions))}
    scores: dict[str, float] = {}
    for name in SCORERS:
        if name not in scorers:
            continue
        quiet = {"verbose": 0} if name == "bleu" else {}
        score, _ = SCORERS[name]().compute_score(truth, said, **quiet)
        scores |= {f"bleu_{n}": s for n, s in enumerate(score, 1)} if name == "bleu" else {name: float(score)}
    return scores


class CaptionScores(AnswerMetric):
    """Caption scores of a split, x 100; the references are the captions of the row's image.

    Scorers that cannot run here are named, with the remedy, in a warning at construction, and left out.

    Args:
        scorers: See :func:`caption_scores`. ``cider``, the headline, is always among them.
        vocabulary: Of objects, see :func:`mllm_lit.metrics.chair_scores`; with it ``chair_i`` and ``chair_s`` are
            computed, too. What is in a picture is then what its references name and what the row's ``meta`` lists
            under ``objects``, joined by ``|``.
    """

    headline = "cider"

    def __init__(self, scorers: Sequence[str] = DEFAULT, vocabulary: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.unavailable = unavailable(scorers)
        for name, reason in self.unavailable.items():
            warnings.warn(f"caption score {name} is unavailable and will not be reported: it {reason}", stacklevel=2)
        self.scorers = tuple(n for n in SCORERS if n == "cider" or (n in scorers and n not in self.unavailable))

    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[Record]:
        """Caption, references and listed objects of each row."""
        pairs = zip(predictions, samples, strict=True)
        return [(text, sample.references, sample.meta.get("objects", "")) for text, sample in pairs]

    def score(self, records: Sequence[Record]) -> dict[str, float]:
        """The scores over the whole split."""
        predictions, references, listed = zip(*records, strict=True)
        scores = caption_scores(predictions, references, self.scorers)
        if self.vocabulary is not None:
            named = (
                {name for caption in captions for name in mentioned(caption, self.vocabulary)}
                for captions in references
            )
            objects = [names | set(filter(None, line.split("|"))) for names, line in zip(named, listed, strict=True)]
            scores |= chair_scores(predictions, objects, self.vocabulary)
        return {name: 100 * score for name, score in scores.items()}

    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """``None`` for every row: the scores are of a split, not of a row."""
        return [None] * len(predictions)
