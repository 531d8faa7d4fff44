"""How often this package's tokenizer gives the tokens of pycocoevalcap's Java program (needs Java).

    python -m benchmarks.ptb_agreement --out benchmarks/results/ptb_agreement.json

Four corpora: made-up captions full of what is hard to tokenise (names, abbreviations, times, prices, quotes); every
caption, question and answer of the sets that come with the package; and, as stress tests far outside of what captions
hold, the lines of Python's own manual with its code, addresses and symbols, and made-up captions into which random
marks were thrown. The benchmark has to be started from the repository, whose tests make the captions.
"""

import argparse
import platform
import random
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from benchmarks.report import write_report
from mllm_lit import tasks
from mllm_lit.metrics.ptb import tokenize_all
from mllm_lit.summary import commit
from tests.metrics.make_ptb_gold import captions

SHOWN = 20
MARKS = [
    *".,;:!?-'\"()[]{}/&$%#@*_+=<>~^|`",
    "--",
    "...",
    "’",
    "‘",
    "“",
    "”",
    "–",
    "—",
    "…",
    "°",
    "é",
    "½",
    "€",
    "5",
    "B.",
]


def embedded() -> Iterator[str]:
    """Questions and references of every embedded set."""
    known = {part.name: part for part in map(vars(tasks).__getitem__, tasks.__all__) if hasattr(part, "name")}
    for name in tasks.EMBEDDED:
        task = known[name]()
        roles = [role for role in task.split_names if role != "train" or task.has_train_split]
        for split in dict.fromkeys(task.split_names[role] for role in roles):
            for sample in task.rows(tasks.embedded_root(name), split):
                yield from (turn.text for turn in sample.turns)
                yield from sample.references


def mutated(texts: list[str], seed: int) -> list[str]:
    """Each text with one to four random marks at random places."""
    rng = random.Random(seed)

    def one(text: str) -> str:
        for _ in range(rng.randint(1, 4)):
            at = rng.randint(0, len(text))
            text = text[:at] + rng.choice(MARKS) + text[at:]
        return text

    return [one(text) for text in texts]


def corpora(count: int) -> dict[str, list[str]]:
    """The texts to compare on, by corpus, each text once."""
    manual = (line.strip() for topic in topics.values() for line in topic.split("\n"))
    written = captions(count, seed=1)
    made_up = {
        "made-up captions": written,
        "embedded sets": [text.replace("\n", " ") for text in embedded()],
        "Python's manual": [line for line in manual if line],
        "captions with random marks": mutated(written, seed=1),
    }
    return {name: list(dict.fromkeys(texts)) for name, texts in made_up.items()}


def compare(texts: list[str]) -> dict[str, Any]:
    """Agreement over texts and over their tokens, and some of the texts on which the two differ."""
    theirs = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(texts)})
    pairs = [(text, theirs[i][0], mine) for i, (text, mine) in enumerate(zip(texts, tokenize_all(texts), strict=True))]
    differing = [pair for pair in pairs if pair[1] != pair[2]]
    return {
        "texts": len(pairs),
        "tokens": sum(len(java.split()) for _, java, _ in pairs),
        "equal": len(pairs) - len(differing),
        "agreement": 1 - len(differing) / len(pairs),
        "differing": [{"text": text, "java": java, "python": mine} for text, java, mine in differing[:SHOWN]],
    }


def main() -> None:
    """Compare and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--captions", type=int, default=20_000, help="made-up captions")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report = {
        "corpora": {name: compare(texts) for name, texts in corpora(options.captions).items()},
        "seed": 1,
        "commit": commit(),
        "versions": {"python": platform.python_version(), "pycocoevalcap": version("pycocoevalcap")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
