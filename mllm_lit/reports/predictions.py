"""Answers before and after training: which samples were learned and forgotten, and some of them to look at."""

import base64
import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.data.images import load_image
from mllm_lit.errors import UserError
from mllm_lit.reports.page import Answers, Block, Text
from mllm_lit.reports.scores import Difference, ReportError, over_samples
from mllm_lit.seed import seeded

if TYPE_CHECKING:
    from mllm_lit.data.sample import Sample
    from mllm_lit.evaluation.sets import Record

RIGHT = 0.5
"""A sample's score from which on it counts as right."""
WIDTH = 208
"""Of a picture, in pixels."""

Pair = tuple["Record", "Record"]
"""One sample, twice: before and after, or in one run and in another."""
Samples = Callable[[str], Mapping[str, "Sample"]]
"""Gives the samples of a set by id; raises a ``UserError`` where they are not to be had."""


def read_records(file: Path) -> "dict[str, Record]":
    """The records of a finished evaluation by sample.

    Raises:
        ReportError: The file is missing, or a line of it is not whole.
    """
    if not file.is_file():
        raise ReportError(f"{file} is missing: the answers of this evaluation are not here.")
    found = {}
    text = file.read_text(encoding="utf-8", errors="replace")
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):  # an answer may have other ends of lines
        try:
            record = json.loads(line)
            found[record["id"]] = record
        except (ValueError, TypeError, KeyError) as error:
            raise ReportError(
                f"{file}:{number} is no whole record, so the file was cut off or edited. Copy it again, or score the "
                "run anew by tools/evaluate.py --run."
            ) from error
    return found


def pairs_of(one: Path, other: Path) -> list[Pair]:
    """The samples of two prediction files, in the order of the first.

    Raises:
        ReportError: A file cannot be read, or they are not of the same samples.
    """
    mine, theirs = read_records(one), read_records(other)
    if mine.keys() != theirs.keys():
        only = sorted(mine.keys() ^ theirs.keys())
        raise ReportError(
            f"{one} has {len(mine)} samples and {other} has {len(theirs)}; {len(only)} are in one alone, such as "
            f"{only[0]!r}. One was cut off, or they are of different subsets."
        )
    return [(record, theirs[key]) for key, record in mine.items()]


def right(record: "Record") -> bool | None:
    """Whether an answer is right; ``None`` where answers have no scores of their own (CIDEr)."""
    return None if record["score"] is None else record["score"] >= RIGHT


def over_scored(pairs: Sequence[Pair]) -> Difference | None:
    """The first less the second, over their samples; ``None`` where not all have scores of their own."""
    ours = [score for one, _ in pairs if (score := one["score"]) is not None]
    theirs = [score for _, other in pairs if (score := other["score"]) is not None]
    return over_samples(ours, theirs) if pairs and len(ours) == len(theirs) == len(pairs) else None


def turned(pairs: Iterable[Pair], to: bool) -> list[Pair]:
    """Those that became right, or wrong."""
    return [pair for pair in pairs if right(pair[0]) is (not to) and right(pair[1]) is to]


def by_type(pairs: Sequence[Pair]) -> list[list[Any]]:
    """A row for all samples and for those of each type: how many, right before, right after, learned, forgotten."""
    labels = sorted({label for one, _ in pairs for label in one.get("labels", [])})
    groups = {"all": list(pairs)} | {label: [p for p in pairs if label in p[0].get("labels", [])] for label in labels}
    return [
        [name, len(group), *(sum(bool(right(pair[side])) for pair in group) for side in (0, 1))]
        + [len(turned(group, to)) for to in (True, False)]
        for name, group in groups.items()
    ]


def shown(name: str, pairs: Sequence[Pair], samples: Samples, count: int) -> list[Block]:
    """Some samples of a set that were learned, and some that were forgotten, with their pictures.

    Those come first for which the NLL of the true answer has changed most. Where answers have no scores of their own,
    it alone decides.

    Args:
        name: Of the set.
        pairs: Before and after.
        samples: Where pictures are found.
        count: How many of each are shown.
    """

    def change(pair: Pair) -> float:
        return pair[1]["nll"] - pair[0]["nll"]

    scored = any(right(one) is not None for one, _ in pairs)
    blocks: list[Block] = []
    for to, word, how in ((True, "learned", "fell"), (False, "forgotten", "rose")):
        found = turned(pairs, to) if scored else [pair for pair in pairs if (change(pair) < 0) is to]
        found.sort(key=lambda pair: change(pair) if to else -change(pair))
        what = f"{word} ({'wrong → right' if to else 'right → wrong'})" if scored else f"NLL of the true answer {how}"
        if found:
            rows = [_row(name, pair, samples) for pair in found[:count]]
            blocks.append(Answers(f"{name}: {what}, {len(rows)} of {len(found)}", rows))
            missing = next((row["missing"] for row in rows if row["missing"]), "")
            blocks += [Text(f"Pictures that are not here: {missing}", warning=True)] if missing else []
    return blocks or [Text(f"{name}: no sample was learned or forgotten.")]


def _row(name: str, pair: Pair, samples: Samples) -> dict[str, Any]:
    before, after = pair
    picture, missing = None, ""
    if before["image"]:
        try:
            picture = _picture(name, before, samples)
        except UserError as error:
            missing = str(error).splitlines()[0]
    looks = {True: "right", False: "wrong", None: ""}
    return {
        **{key: before[key] for key in ("id", "question", "answer")},
        **{"before": before["prediction"], "after": after["prediction"]},
        **{"was": looks[right(before)], "is": looks[right(after)]},
        **{"labels": ", ".join(before.get("labels", [])), "nll": f"{before['nll']:.2f} → {after['nll']:.2f}"},
        **{"picture": picture, "missing": missing, "pictures": len(before["image"])},
    }


def _picture(name: str, record: "Record", samples: Samples) -> str:
    """The first picture of a sample, a small JPEG as a data URL."""
    sample = samples(name).get(record["id"])
    if sample is None or not sample.images:
        raise ReportError(f"the data of {name} have no picture of sample {record['id']!r} here.")
    image = load_image(sample.images[0], sample.origin)
    image.thumbnail((WIDTH, 2 * WIDTH))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=70)
    return f"data:image/jpeg;base64,{base64.b64encode(out.getvalue()).decode()}"


def samples_of(sets: Mapping[str, Iterable["Sample"]]) -> Samples:
    """Samples that are there already."""
    return cache(lambda name: {sample.id: sample for sample in sets.get(name, ())})


def samples_read(config: Mapping[str, Any], file: Path, trust: Sequence[str] = ()) -> Samples:
    """The samples that a run was scored on, read again where its settings say that they are.

    Args:
        config: The run's ``config.yaml``.
        file: Its path, for messages.
        trust: Modules, beside this package, whose classes it may name.
    """

    def read(name: str) -> Mapping[str, "Sample"]:
        data = config.get("data", {}).get("init_args", {})
        beside = [(data.get(key) or {}).get("init_args", {}).get("sets", {}) for key in ("sources", "others")]
        settings = next((sets[name] for sets in beside if name in sets), {**data, "split": data.get("test_split")})
        settings = settings.get("init_args", settings)
        if "task" not in settings:
            raise ReportError(f"{file} does not say where the samples of {name} are.")
        # A split may be drawn with the run's seed.
        with seeded(config.get("seed_everything")):
            return _rows(
                json.dumps(settings["task"]),
                settings.get("root"),
                settings.get("split"),
                tuple(trust),
                config.get("seed_everything"),
            )

    return cache(read)


@cache
def _rows(
    task: str, root: str | None, split: str | None, trust: tuple[str, ...], _seed: int | None
) -> "Mapping[str, Sample]":
    from jsonargparse import ArgumentError, ArgumentParser

    from mllm_lit.parsing import only_trusted
    from mllm_lit.sources import resolve_root
    from mllm_lit.tasks.base import Task

    settings = json.loads(task)
    with only_trusted(Path("config.yaml"), settings, trust):
        parser = ArgumentParser(exit_on_error=False)
        parser.add_subclass_arguments(Task, "task", required=True)
        try:
            made: Task = parser.instantiate(parser.parse_object({"task": settings})).task
        except ArgumentError as error:
            raise ReportError(f"config.yaml does not describe a task: {error}") from error
    return {sample.id: sample for sample in made.rows(resolve_root(made, root), split or made.split_names["test"])}
