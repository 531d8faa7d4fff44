"""Conversations of one's own, in the layouts of LLaVA, LLaMA-Factory and ms-swift."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import Sample, Turn
from mllm_lit.data.subset import subset
from mllm_lit.errors import SettingError, in_range
from mllm_lit.seed import run_seed
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.chat import FIELDS, Chat, read_chat
from mllm_lit.tasks.files import collect
from mllm_lit.tasks.general import LETTERS, SCORES, check_scorable, scorer
from mllm_lit.tasks.huggingface import picture_of
from mllm_lit.tasks.places import find_splits, hub_id, hub_records, named, records, renamed

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

TRAIN = "train"
SHARE, MOST = 0.05, 500
"""What is drawn where nothing is said: this share of the rows, and no more than so many."""


class Conversations(Task):
    """Conversations, a row each, in any layout that :mod:`mllm_lit.tasks.chat` names; template field ``{question}``.

    A conversation is one sample: every answer of it is trained on, the last one is generated and scored. Pictures come
    ahead of the first question's text, wherever their markers are. Of conversations with one id the later ones are
    numbered (``id#1``, ``id#2``, ...); those without an id have their line, or place, for one.

    The root is a file (JSON lines, JSON or parquet), a folder with a file for each split, or a data set of the hub.
    A split ``val`` or ``test`` that is not there is drawn from ``train`` with the run's seed: the same rows on every
    rank, after resuming, and whatever else is drawn.

    Args:
        prompt: Template of each user turn.
        images: Folder that image names are relative to; itself relative to the root, or to the root file's folder.
        score: How the last answer is scored: exact, lower, gqa, vqa, m4c, choice, caption or pope.
        max_new_tokens: Longest answer that is generated.
        columns: Where fields are called otherwise: what is read -> its name there, as in
            ``{messages: dialogue, images: pictures}``.
        val_size: Rows that are drawn for ``val`` where there is none: a share below 1, or a number; ``None`` for a
            twentieth, at most 500. 0 draws none.
        test_size: Likewise for ``test``.
        config_name: Configuration of a data set on the hub.
    """

    name = "conversations"
    default_prompt = "{question}"
    published_at = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md (the format)"
    expected_tree = """
    ROOT/{split}.json      [{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": ...}, ...]}]
    ROOT/{image name}
    (or {split}.jsonl or .parquet, or a file as ROOT; other layouts: docs/tasks.md)"""
    takes_files: ClassVar[bool] = True

    def __init__(
        self,
        prompt: str | None = None,
        images: str = ".",
        score: str = "lower",
        max_new_tokens: int = 64,
        columns: dict[str, str] | None = None,
        val_size: float | None = None,
        test_size: float | None = None,
        config_name: str | None = None,
    ) -> None:
        super().__init__(prompt)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; there are: {', '.join(SCORES)}")
        unknown = sorted(set(columns or ()) - FIELDS)
        if unknown:
            raise SettingError(f"data.task.columns maps {unknown}; what can be mapped is {', '.join(sorted(FIELDS))}")
        self.images, self.score = images, score
        self.max_new_tokens = max_new_tokens
        self.columns, self.config_name = columns, config_name
        self.sizes = {"val": _size("val", val_size), "test": _size("test", test_size)}

    def rows(self, root: Path, split: str) -> list[Sample]:
        """See :meth:`Task.rows`; a split that is not there may be drawn from ``train``, which is read whole."""
        splits = find_splits(root, self.config_name)
        if (name := named(splits, split, root)) is not None:
            return self._read(root, name, splits[name])
        if not splits:
            self.locate(root, f"{split}.json", f"{split}.jsonl", f"{split}.parquet")
        drawn = self._drawn(root, splits)
        self.check_split(split, sorted({*splits, *drawn}))
        return drawn[split]

    def training_rows(self, root: Path, split: str, scored: Collection[str]) -> list[Sample]:
        """See :meth:`Task.training_rows`."""
        splits = find_splits(root, self.config_name)
        drawn = {name: rows for name, rows in self._drawn(root, splits).items() if name in scored}
        rows = self.rows(root, split)
        if not drawn:
            return rows
        if named(splits, split, root) != named(splits, TRAIN, root):
            raise DatasetError(
                f"{root} has no split {' and '.join(drawn)}, which would be drawn from {TRAIN!r}, but {split!r} is "
                "trained on. Name splits that are there (data.val_split, data.test_split)."
            )
        held = {row.id for part in drawn.values() for row in part}
        return [row for row in rows if row.id not in held]

    def drawn(self, root: Path, scored: Collection[str]) -> str | None:
        """See :meth:`Task.drawn`."""
        splits = find_splits(root, self.config_name)
        parts = {name: rows for name, rows in self._drawn(root, splits).items() if name in scored}
        if not parts:
            return None
        told = " and ".join(f"{len(rows):,} for {name}" for name, rows in parts.items())
        line = (
            f"{root} has no split {' or '.join(parts)}: of its {len(self.rows(root, TRAIN)):,} rows {told} are drawn "
            f"with seed {run_seed()} (data.task.val_size, data.task.test_size)"
        )
        rest = {image for row in self.training_rows(root, TRAIN, scored) for image in row.images}
        shown = {image for rows in parts.values() for row in rows for image in row.images}
        both = len(shown & rest)
        return f"{line}; pictures of them that are trained on, too: {both:,} of {len(shown):,}" if both else line

    def _drawn(self, root: Path, splits: Mapping[str, list[Path]]) -> dict[str, list[Sample]]:
        """The rows of every split that is drawn."""
        name = named(dict(splits), TRAIN, root)
        absent = [role for role in self.sizes if named(dict(splits), role, root) is None]
        if name is None or not absent:
            return {}
        rows = self._read(root, name, splits[name])
        counts = {role: _count(self.sizes[role], len(rows)) for role in absent}
        if sum(counts.values()) >= len(rows):
            told = " and ".join(f"{count:,} for {role}" for role, count in counts.items())
            raise DatasetError(
                f"{root}: {told} would be drawn, but there are {len(rows):,} rows, of which some have to be left to "
                "train on. Set data.task.val_size and data.task.test_size, or give files of these splits."
            )
        parts: dict[str, list[Sample]] = {}
        for role in filter(counts.get, ("test", "val")):
            parts[role] = subset(rows, counts[role], seed=run_seed())
            held = {row.id for row in parts[role]}
            rows = [row for row in rows if row.id not in held]
        return {role: parts[role] for role in absent if role in parts}

    def chats(self, root: Path, split: str, files: Iterable[Path]) -> Iterable[tuple[str, list[tuple[str, object]]]]:
        """Each file of a split (or the hub's split) and its rows, their fields called as they are read."""
        columns = self.columns or {}
        if (name := hub_id(root)) is not None:
            source = f"{name}/{split}"
            yield source, list(renamed(hub_records(name, split, self.config_name), columns, source))
        for path in files:
            yield str(path), list(renamed(records(path), columns, str(path)))

    def _read(self, root: Path, split: str, files: list[Path]) -> list[Sample]:
        states = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in files)
        return list(_samples(self, root, split, tuple(files), states))

    def sample(self, folder: Path, source: str, alone: bool, place: str, row: object) -> Iterable[Sample]:
        """The sample of a row.

        Args:
            folder: What names of pictures are relative to.
            source: The row's file.
            alone: The file is the only one of its split.
            place: The row in it.
            row: Its fields.

        Raises:
            ValueError: It cannot be read.
        """
        chat: Chat = read_chat(row)
        origin = f"{source}:{place}"
        turns = [Turn(t.role, self.ask(question=t.text)) if t.role == "user" else t for t in chat.turns]
        answer = turns[-1].text
        # The format does not list the choices, so any letter is one.
        choices = tuple(LETTERS) if self.score == "choice" else ()
        check_scorable(self.score, [answer], choices)
        yield Sample(
            id=chat.id or (place if alone else f"{Path(source).stem}:{place}"),
            turns=tuple(turns),
            images=tuple(picture_of(picture, folder, origin) for picture in chat.pictures),
            references=(answer,),
            choices=choices,
            origin=origin,
        )

    def folder(self, root: Path) -> Path:
        """What names of pictures are relative to."""
        return (root.parent if root.is_file() else root) / self.images

    def metric(self) -> "AnswerMetric":
        return scorer(self.score)


@lru_cache(maxsize=1)  # a file has the rows of all splits that are drawn
def _samples(task: Conversations, root: Path, split: str, files: tuple[Path, ...], _states: object) -> list[Sample]:
    samples: list[Sample] = []
    for source, rows in task.chats(root, split, files):
        samples += collect(Path(source), rows, partial(task.sample, task.folder(root), source, len(files) < 2))
    # LLaVA's own files give the conversations on a picture one id.
    seen: Counter[str] = Counter()
    for place, sample in enumerate(samples):
        if count := seen[sample.id]:
            samples[place] = replace(sample, id=f"{sample.id}#{count}")
        seen[sample.id] += 1
    return samples


def _size(role: str, size: float | None) -> float | None:
    checked = in_range(f"data.task.{role}_size", size, 0)
    if checked is not None and checked >= 1 and checked != int(checked):
        raise SettingError(f"data.task.{role}_size is {checked}; expected a share below 1, or a whole number of rows.")
    return checked


def _count(size: float | None, rows: int) -> int:
    if size is None:
        return min(MOST, max(1, round(SHARE * rows)))
    return max(1, round(size * rows)) if 0 < size < 1 else int(size)
