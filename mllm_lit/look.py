"""What one's own data are: in which layout, how many rows, which pictures, and what of them is not read."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import Sample
from mllm_lit.errors import SettingError
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.chat import Chat, read_chat
from mllm_lit.tasks.conversations import Conversations
from mllm_lit.tasks.places import find_splits, hub_id


def look(task: Task, root: Path) -> tuple[Iterator[str], Mapping[str, Callable[[], list[Sample]]]]:
    """Lines on what is found at a root, and what reads each split that is there; a reader names what it cannot read.

    Raises:
        SettingError: The task is no :class:`~mllm_lit.tasks.Conversations`.
        DatasetError: There are no data, or the hub cannot be reached.
    """
    if not isinstance(task, Conversations):
        raise SettingError(f"{root} would be read as conversations, but data.task is {task.name}; give --data.root")
    splits = find_splits(root, task.config_name)
    return _lines(task, root), {name: partial(task.rows, root, name) for name in splits}


def _lines(task: Conversations, root: Path) -> Iterator[str]:
    splits = find_splits(root, task.config_name)
    if not splits:
        task.locate(root, "train.jsonl", "train.json", "train.parquet")
    for split, files in splits.items():
        try:
            for source, rows in task.chats(root, split, files):
                yield f"{source}: {len(rows):,} rows, the split {split!r}"
                yield from _about(rows)
        except DatasetError as error:
            told = f"rows that are no JSON: {len(error.faults):,}" if error.faults else str(error)
            yield f"{', '.join(map(str, files)) or split}: {told}"
    if hub_id(root) is None:
        yield f"names of pictures are relative to {task.folder(root)} (data.task.images)"
    try:
        drawn = task.drawn(root, ("val", "test"))
    except DatasetError as error:
        drawn = None if error.faults else str(error)
    if drawn is not None:
        yield drawn


def _about(rows: list[tuple[str, object]]) -> Iterator[str]:
    chats: list[Chat] = []
    layouts: Counter[str] = Counter()
    unread: Counter[str] = Counter()
    refused = 0
    for _, row in rows:
        try:
            chat = read_chat(row)
        except ValueError:
            refused += 1
            continue
        chats.append(chat)
        layouts[chat.layout] += 1
        unread.update(str(name) for name in row if name not in chat.read)  # type: ignore[attr-defined]
    for layout, count in layouts.most_common():
        yield f"  layout: {layout}: {_rows(count)}"
    if refused:
        yield f"  layout: none that can be read: {_rows(refused)}; see the faults"
    if not chats:
        return
    yield f"  pictures a row: {_spread(len(chat.pictures) for chat in chats)}"
    yield f"  answers a row: {_spread(sum(turn.role == 'assistant' for turn in chat.turns) for chat in chats)}"
    systems = sum(chat.turns[0].role == "system" for chat in chats)
    if systems:
        yield f"  with a system prompt: {_rows(systems)}"
    for moved, count in Counter(chat.moved for chat in chats if chat.moved).items():
        yield f"  {moved}: {_rows(count)}; pictures come ahead of the first question's text all the same"
    for name, count in unread.most_common():
        yield f"  field {name!r} is not read: {_rows(count)}"


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def _spread(counts: Iterable[int]) -> str:
    """How often each number occurs, the smallest first.

    >>> _spread([1, 1, 0])
    '0 (1 row), 1 (2 rows)'
    """
    found = sorted(Counter(counts).items())
    told = [f"{number} ({_rows(count)})" for number, count in found]
    return ", ".join(told if len(told) < 8 else [*told[:3], "...", *told[-3:]])


def own_words(path: str, *words: str) -> list[str]:
    """The command line on which one's own data are the target, the embedded model is the backbone, and nothing else is.

    Args:
        path: File, folder or hub id.
        *words: Of ``tools/fit.py``; files of settings come first, the rest has the last word.
    """
    files, rest, following = [], [], iter(words)
    for word in following:
        if word == "--config" or word.startswith("--config="):
            files += [word] if "=" in word else [word, next(following, "")]
        else:
            rest.append(word)
    model = {"backbone": "mllm_lit.backbones.Backbone", "adapter": "mllm_lit.adapters.Full"}
    parts = [] if files else [word for part, name in model.items() for word in (f"--model.{part}", name)]
    own = ["--data.task", "conversations", "--data.root", path, "--data.sources", "null", "--data.others", "null"]
    return [*files, *parts, "--trainer.logger", "false", *own, *rest]
