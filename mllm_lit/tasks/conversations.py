"""Conversations in LLaVA's JSON format."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mllm_lit.data.sample import Sample, Turn
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Key, Row, Text, collect, read_list
from mllm_lit.tasks.general import LETTERS, SCORES, check_scorable, scorer

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

ROLES: dict[str, Literal["system", "user", "assistant"]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
MARKER = "<image>"


class Said(Row, rename={"who": "from"}):
    """One turn."""

    who: Literal["system", "human", "user", "gpt", "assistant"]
    value: Text


class Entry(Row):
    """A conversation."""

    id: Key
    conversations: list[Said]
    image: str | list[Text] | None = None


class Conversations(Task):
    """A list of ``{id, image?, conversations}``; template field ``{question}``.

    A conversation is one sample: every answer of it is trained on, the last one is generated and scored. Pictures come
    ahead of the first question's text, wherever their markers are. Of conversations with one id the later ones are
    numbered (``id#1``, ``id#2``, ...).

    Args:
        prompt: Template of each user turn.
        images: Folder, below the root, that image names are relative to.
        score: How the last answer is scored: exact, lower, gqa, vqa, m4c, choice, caption or pope.
        max_new_tokens: Longest answer that is generated.
    """

    name = "conversations"
    default_prompt = "{question}"
    published_at = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md (the format)"
    expected_tree = """
    ROOT/{split}.json      [{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": ...}, ...]}]
    ROOT/{image name}"""

    def __init__(
        self, prompt: str | None = None, images: str = ".", score: str = "lower", max_new_tokens: int = 64
    ) -> None:
        super().__init__(prompt)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; there are: {', '.join(SCORES)}")
        self.images, self.score = images, score
        self.max_new_tokens = max_new_tokens

    def rows(self, root: Path, split: str) -> list[Sample]:
        if Path(root).is_dir():
            self.check_split(split, sorted(path.stem for path in Path(root).glob("*.json")))
        path = self.locate(root, f"{split}.json")
        entries = enumerate(read_list(path, Entry))
        samples = collect(path, entries, partial(self._row, path, Path(root) / self.images))
        # LLaVA's own files give the conversations on a picture one id.
        seen: Counter[str] = Counter()
        for place, sample in enumerate(samples):
            if count := seen[sample.id]:
                samples[place] = replace(sample, id=f"{sample.id}#{count}")
            seen[sample.id] += 1
        return samples

    def _row(self, path: Path, folder: Path, row: str, entry: Entry) -> Iterable[Sample]:
        names = [entry.image] if isinstance(entry.image, str) else entry.image or []
        if not all(name.strip() for name in names):
            raise ValueError("field 'image' is blank; leave it out where there is no picture")
        said = [(ROLES[turn.who], turn.value) for turn in entry.conversations]
        exchanges = said[1:] if said and said[0][0] == "system" else said
        if not exchanges or [role for role, _ in exchanges] != ["user", "assistant"] * (len(exchanges) // 2):
            raise ValueError(
                f"field 'conversations' has turns from {[turn.who for turn in entry.conversations]}, expected human "
                "and gpt in turn, the answer last (a system turn may come first)"
            )
        markers = sum(value.count(MARKER) for _, value in said)
        if markers not in (0, len(names)):
            raise ValueError(f"{markers} {MARKER} markers for {len(names)} images")
        turns = []
        for role, value in said:
            value = value.replace(MARKER, "").strip()
            if not value:
                raise ValueError(f"a turn of the {role} holds no text beside the {MARKER} marker")
            turns.append(Turn(role, self.ask(question=value) if role == "user" else value))
        answer = turns[-1].text
        # The format does not list the choices, so any letter is one.
        choices = tuple(LETTERS) if self.score == "choice" else ()
        check_scorable(self.score, [answer], choices)
        yield Sample(
            id=str(entry.id),
            turns=tuple(turns),
            images=tuple(folder / name for name in names),
            references=(answer,),
            choices=choices,
            origin=f"{path}:{row}",
        )

    def metric(self) -> "AnswerMetric":
        return scorer(self.score)
