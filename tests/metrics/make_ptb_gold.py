"""Rewrites ptb_gold.json: captions of many kinds with the tokens that pycocoevalcap's Java program gives (needs Java).

python tests/metrics/make_ptb_gold.py
"""

import json
import random
import sys
from pathlib import Path

from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

WHO = [
    "a man",
    "two women",
    "an old couple",
    "the dog's owner",
    "St. Bernard dogs",
    "a U.S. soldier",
    "Dr. Smith",
    "kids' team",
    "O'Brien",
    "a T-shirt guy",
    "people (some seated)",
    "the man with the letter B.",
    "he",
    "an 8-year-old",
    "J.R.R. Tolkien",
]
DOES = [
    "rides",
    "isn't eating",
    "can't reach",
    "is gonna catch",
    "cannot see",
    "that's near",
    "who'll take",
    "is holding up",
    "doesn't like",
    "they're by",
    "WON'T sell",
    "looks at",
    "I'd've bought",
    "ain't got",
]
WHAT = [
    "a surfboard",
    "the stop sign",
    "a two-story building",
    "black-and-white photos",
    "a sign that reads 10:30 p.m.",
    "a $5.00 bill",
    "No. 5 jersey",
    "a 1950's car",
    "the '90s sedan",
    "a half-eaten sandwich",
    "AT&T store",
    "rock 'n' roll band",
    "3 1/2 cups",
    "1,000 balloons",
    "Mt. Fuji",
    "5th Ave.",
    "a 4x4 truck",
    "50% off",
    "an and/or dish",
    "toys, books; pens",
    "#1 fan",
    '12" pizza',
    "café tables",
    "“curly” quotes",
    "a x-ray e.g. this",
    "www.example.com",
    "7-Eleven",
    "Coca-Cola",
    "a 747-400",
    "6' tall giraffe",
    "<UNK>",
    "[something] {odd}",
    "wi-fi...",
    "a w/o sign",
    "vs. him",
    "etc.",
    ":-) face",
    "C++ book",
    "°F",
    "no. yes",
    "A & B",
]
END = [".", " .", "", "!", "?", "...", ",", ".)", " ;", "?!", " -", ". "]
ALONE = ["", " ", ".", "Plan B.", "The end.The man", "a.b", "it''s", "don’t", "y'all", "'TWAS", "-LRB-", "a\tb", "½"]


def captions(count: int, seed: int) -> list[str]:
    """Made-up captions, the same for every run."""
    rng = random.Random(seed)
    out = list(ALONE)
    while len(out) < count:
        text = f"{rng.choice(WHO)} {rng.choice(DOES)} {rng.choice(WHAT)}"
        if rng.random() < 0.5:
            text += rng.choice([" in ", ", and ", " -- ", " - ", " / ", "; ", "... "]) + rng.choice(WHAT)
        text = rng.choice([text, text, text[0].upper() + text[1:], text.upper(), f'"{text}"', f"'{text}'"])
        out.append(text + rng.choice(END))
    return out


def main() -> None:
    """Ask the Java program."""
    given = captions(1500, seed=0)
    tokens = PTBTokenizer().tokenize({i: [{"caption": caption}] for i, caption in enumerate(given)})
    rows = [[caption, tokens[i][0]] for i, caption in enumerate(given)]
    path = Path(__file__).with_name("ptb_gold.json")
    path.write_text("[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n]\n", encoding="utf-8")
    sys.stdout.write(f"{len(rows)} captions in {path}\n")


if __name__ == "__main__":
    main()
