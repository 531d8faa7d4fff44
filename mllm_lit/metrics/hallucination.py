"""Things said to be in a picture that are not there: POPE and CHAIR."""

import re
from collections.abc import Collection, Mapping, Sequence

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import AnswerMetric

_WORD = re.compile(r"[^\W_]+(?:[-'][^\W_]+)*")


def parse_yes_no(text: str) -> bool:
    """POPE's reading of an answer: no if ``No``, ``no`` or ``not`` is a word of its first sentence, else yes.

    >>> parse_yes_no("Yes, there is."), parse_yes_no("There is not."), parse_yes_no("NO")
    (True, False, True)
    """
    return not {"No", "no", "not"} & set(text.split(".")[0].replace(",", "").split(" "))


def pope_scores(predictions: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """POPE over a split (Li et al., 2023), each in [0, 1], with *yes* as the positive class.

    Args:
        predictions: The generated answers.
        labels: ``yes`` or ``no`` for each.

    Returns:
        ``f1``, ``accuracy``, ``precision``, ``recall`` and ``yes_ratio``; a quotient by zero counts as 0.

    Raises:
        ValueError: The lists do not match, or a label is neither.
    """
    if len(predictions) != len(labels) or not labels:
        raise ValueError(f"{len(predictions)} answers for {len(labels)} labels; they must be pairs, at least one")
    odd = sorted(set(labels) - {"yes", "no"})
    if odd:
        raise ValueError(f"labels are yes or no, found {odd[:5]}")
    said = [parse_yes_no(prediction) for prediction in predictions]
    true = [label == "yes" for label in labels]
    hits = sum(s and t for s, t in zip(said, true, strict=True))
    precision = hits / sum(said) if any(said) else 0.0
    recall = hits / sum(true) if any(true) else 0.0
    return {
        "f1": 2 * precision * recall / (precision + recall) if hits else 0.0,
        "accuracy": sum(s == t for s, t in zip(said, true, strict=True)) / len(true),
        "precision": precision,
        "recall": recall,
        "yes_ratio": sum(said) / len(said),
    }


class POPEScores(AnswerMetric):
    """POPE over a split, in points; the row's reference is ``yes`` or ``no``."""

    headline = "f1"

    def records(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[tuple[str, str]]:
        """Answer and label of each row."""
        return [(text, sample.references[0]) for text, sample in zip(predictions, samples, strict=True)]

    def score(self, records: Sequence[tuple[str, str]]) -> dict[str, float]:
        """The scores over the whole split."""
        predictions, labels = zip(*records, strict=True)
        return {name: 100 * value for name, value in pope_scores(predictions, labels).items()}

    def row_scores(self, predictions: Sequence[str], samples: Sequence[Sample]) -> list[float | None]:
        """1 for the right answer, else 0."""
        pairs = zip(predictions, samples, strict=True)
        return [float(parse_yes_no(text) == (sample.references[0] == "yes")) for text, sample in pairs]


def mentioned(caption: str, vocabulary: Mapping[str, str]) -> list[str]:
    """The objects that a caption mentions, in order, repeated as often as they are.

    The longest name that fits is taken (``hot dog`` is no ``dog``), and a plural in ``s`` or ``es`` counts as its
    singular; give irregular plurals as names of their own.

    >>> mentioned("Two dogs share a hot dog.", {"dog": "dog", "hot dog": "hot dog"})
    ['dog', 'hot dog']
    """
    words = _WORD.findall(caption.lower())
    longest = max((len(name.split()) for name in vocabulary), default=0)
    found, at = [], 0
    while at < len(words):
        for size in range(min(longest, len(words) - at), 0, -1):
            name = " ".join(words[at : at + size])
            hit = next((vocabulary[n] for n in (name, name[:-1], name[:-2]) if _is_form(name, n, vocabulary)), None)
            if hit is not None:
                found.append(hit)
                at += size
                break
        else:
            at += 1
    return found


def _is_form(name: str, singular: str, vocabulary: Mapping[str, str]) -> bool:
    return singular in vocabulary and name.removeprefix(singular) in ("", "s", "es")


def chair_scores(
    captions: Sequence[str], objects: Sequence[Collection[str]], vocabulary: Mapping[str, str]
) -> dict[str, float]:
    """CHAIR (Rohrbach et al., 2018): the share of mentions, and of captions, with an object that is not there.

    Args:
        captions: One per image.
        objects: The objects really in each image.
        vocabulary: Every name an object may be mentioned by, and the object (``{"puppy": "dog", "dog": "dog"}``).

    Returns:
        ``chair_i`` (hallucinated mentions / mentions; 0 if nothing is mentioned) and ``chair_s`` (captions with at
        least one / captions), in [0, 1].

    Raises:
        ValueError: The lists do not match, or an image has an object that the vocabulary does not know.

    >>> chair_scores(["a dog and a cat", "a dog"], [{"dog"}, {"dog"}], {"dog": "dog", "cat": "cat"})
    {'chair_i': 0.3333333333333333, 'chair_s': 0.5}
    """
    if len(captions) != len(objects) or not captions:
        raise ValueError(f"{len(captions)} captions for {len(objects)} images; they must be pairs, at least one")
    unknown = sorted(set().union(*objects) - set(vocabulary.values()))
    if unknown:
        raise ValueError(f"objects that no name of the vocabulary stands for: {unknown[:5]}")
    said = [mentioned(caption, vocabulary) for caption in captions]
    wrong = [sum(item not in there for item in items) for items, there in zip(said, objects, strict=True)]
    mentions = sum(map(len, said))
    return {"chair_i": sum(wrong) / mentions if mentions else 0.0, "chair_s": sum(map(bool, wrong)) / len(captions)}
