"""How fast answers are scored, beside the scorers this package agrees with, in turn in one process.

    python benchmarks/scoring.py --out benchmarks/results/scoring.json

5,000 captions with 5 references each, against pycocoevalcap with its Java tokenizer; 100,000 VQA answers with 10
annotators each, against the official algorithm as it is defined, loop by loop. Also checks that the results agree.
"""

import argparse
import platform
import random
import re
import resource
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from report import write_report

from mllm_lit.metrics import caption_scores, vqa_accuracy
from mllm_lit.metrics.ptb import _chunk, tokenize_all
from mllm_lit.metrics.vqa import ARTICLES, NUMBERS, PUNCTUATION, RESTORED, _one_line, normalize_vqa
from mllm_lit.summary import commit

WHO = [
    "a man",
    "two women",
    "a young boy",
    "the black dog",
    "some people",
    "a tennis player",
    "an old couple's cat",
    "a group of kids",
]
DOES = [
    "riding",
    "holding",
    "standing next to",
    "isn't looking at",
    "playing with",
    "sitting on",
    "walking past",
    "eating",
]
WHAT = [
    "a surfboard",
    "the red stop sign",
    "a half-eaten pizza",
    "a two-story building",
    "his cell phone",
    "a No. 5 jersey",
    "tennis racket",
    "a large brown teddy bear",
    "the kitchen table",
    "a fire hydrant",
    "an umbrella in the rain",
    "a 10:30 train",
]
WHERE = [
    "on the street",
    "in a park",
    "near the ocean, at sunset",
    "at 5 p.m.",
    "in front of a store",
    "with other people",
    "outside",
]
SHORT = [
    "yes",
    "no",
    "2",
    "red",
    "blue",
    "white",
    "tennis",
    "on the table",
    "a dog",
    "dogs",
    "1,000",
    "10:30",
    "the man",
    "black and white",
    "t-shirt",
    "dont know",
]


def captions(count: int, references: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Made-up captions: one prediction and some references per image."""
    rng = random.Random(seed)

    def one() -> str:
        text = f"{rng.choice(WHO)} {rng.choice(DOES)} {rng.choice(WHAT)} {rng.choice(WHERE)}"
        return text[0].upper() + text[1:] + rng.choice((".", ".", " .", ""))

    return [one() for _ in range(count)], [[one() for _ in range(references)] for _ in range(count)]


def answers(count: int, seed: int) -> tuple[list[str], list[list[str]]]:
    """Made-up answers: one prediction and ten annotators per question, a third of them in full agreement."""
    rng = random.Random(seed)
    words = SHORT + [f"{a} {b}" for a in SHORT for b in SHORT] + [f"word{i}" for i in range(3000)]
    weights = [1 / (rank + 1) for rank in range(len(words))]
    pools = [rng.choices(words, weights, k=rng.choice((1, 2, 3))) for _ in range(count)]
    return [rng.choice(pool) for pool in pools], [[rng.choice(pool) for _ in range(10)] for pool in pools]


def official_captions(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """pycocoevalcap from end to end."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truth = PTBTokenizer().tokenize({i: [{"caption": c} for c in refs] for i, refs in enumerate(references)})
    said = PTBTokenizer().tokenize({i: [{"caption": c}] for i, c in enumerate(predictions)})
    bleu, _ = Bleu(4).compute_score(truth, said, verbose=0)
    scores = {f"bleu_{n}": score for n, score in enumerate(bleu, 1)}
    return scores | {"rouge_l": Rouge().compute_score(truth, said)[0], "cider": Cider().compute_score(truth, said)[0]}


def loop_normal(text: str) -> str:
    """The official normalisation, mark by mark and word by word."""
    out = text
    for mark in PUNCTUATION:
        apart = f"{mark} " in text or f" {mark}" in text or re.search(r"(\d)(,)(\d)", text) is not None
        out = out.replace(mark, "" if apart else " ")
    out = re.sub(r"\.(?!\d)", "", out, count=32)
    words = [NUMBERS.get(word, word) for word in out.lower().split()]
    return " ".join(RESTORED.get(word, word) for word in words if word not in ARTICLES)


def loop_accuracy(prediction: str, given: Sequence[str]) -> float:
    """The official score, annotator by annotator over records with an id."""
    rows = [{"answer": answer.replace("\n", " ").replace("\t", " ").strip(), "id": i} for i, answer in enumerate(given)]
    said = prediction.replace("\n", " ").replace("\t", " ").strip()
    if len({row["answer"] for row in rows}) > 1:
        for row in rows:
            row["answer"] = loop_normal(str(row["answer"]))
        said = loop_normal(said)
    scores = []
    for row in rows:
        others = [other for other in rows if other != row]
        scores.append(min(1.0, len([other for other in others if other["answer"] == said]) / 3))
    return sum(scores) / len(scores)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds and result."""
    start = time.perf_counter()
    result = work()
    return time.perf_counter() - start, result


def main() -> None:
    """Time each pair in turn, best of some repetitions, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=5000)
    parser.add_argument("--answers", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    said, truth = captions(options.captions, 5, options.seed)
    replies, given = answers(options.answers, options.seed)
    flat = [caption for refs in truth for caption in refs] + said
    times: dict[str, list[float]] = {}
    results: dict[str, Any] = {}
    work: dict[str, Callable[[], Any]] = {
        "captions": lambda: caption_scores(said, truth),
        "captions, pycocoevalcap": lambda: official_captions(said, truth),
        "captions, tokens alone": lambda: tokenize_all(flat) and None,
        "vqa": lambda: [vqa_accuracy(reply, people) for reply, people in zip(replies, given, strict=True)],
        "vqa, loops": lambda: [loop_accuracy(reply, people) for reply, people in zip(replies, given, strict=True)],
    }
    for _ in range(options.repeat):
        for name, run in work.items():
            for cached in (normalize_vqa, _one_line, _chunk):
                cached.cache_clear()
            seconds, results[name] = timed(run)
            times.setdefault(name, []).append(seconds)
    best = {name: min(seconds) for name, seconds in times.items()}
    gap = {n: abs(s - results["captions, pycocoevalcap"][n]) for n, s in results["captions"].items()}
    report = {
        "seconds": best,
        "speedup": {
            "captions": best["captions, pycocoevalcap"] / best["captions"],
            "vqa": best["vqa, loops"] / best["vqa"],
        },
        "largest difference": {
            "captions": max(gap.values()),
            "vqa": max(abs(a - b) for a, b in zip(results["vqa"], results["vqa, loops"], strict=True)),
        },
        "sizes": {"captions": options.captions, "references": 5, "answers": options.answers},
        "repeat": options.repeat,
        "seed": options.seed,
        "commit": commit(),
        "device": f"{platform.machine()}, one thread",
        "peak_memory_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "versions": {"python": platform.python_version(), **{n: version(n) for n in ("pycocoevalcap", "numpy")}},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
