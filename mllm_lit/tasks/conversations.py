"""Conversations in LLaVA's JSON format."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import collect, read_list, text
from mllm_lit.tasks.general import LETTERS, SCORES, check_scorable, scorer

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

ROLES = ({"human", "user"}, {"gpt", "assistant"})
MARKER = "<image>"


class Conversations(Task):
    """A list of ``{id, image?, conversations}``; template field ``{question}``.

    Every exchange is a row (ids ``id#0``, ``id#1``, ... where there are several). Pictures come ahead of the text.

    Args:
        prompt: Template of the user's turn.
        history: Put the earlier exchanges of a conversation, one turn a line, ahead of the question.
        images: Folder, below the root, that image names are relative to.
        score: How answers are scored: exact, lower, gqa, vqa, m4c, choice, caption or pope.
        max_new_tokens: Longest answer that is generated.
    """

    name = "conversations"
    default_prompt = "{question}"
    published_at = "https://github.com/haotian-liu/LLaVA/blob/main/docs/Finetune_Custom_Data.md (the format)"
    expected_tree = """
    ROOT/{split}.json      [{"id": ..., "image": "a.jpg", "conversations": [{"from": "human", "value": ...}, ...]}]
    ROOT/{image name}"""

    def __init__(
        self,
        prompt: str | None = None,
        history: bool = True,
        images: str = ".",
        score: str = "lower",
        max_new_tokens: int = 64,
    ) -> None:
        super().__init__(prompt)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; there are: {', '.join(SCORES)}")
        self.history, self.images, self.score = history, images, score
        self.max_new_tokens = max_new_tokens

    def rows(self, root: Path, split: str) -> list[Sample]:
        if Path(root).is_dir():
            self.check_split(split, sorted(path.stem for path in Path(root).glob("*.json")))
        path = self.locate(root, f"{split}.json")
        return collect(path, enumerate(read_list(path)), partial(self._row, path, Path(root) / self.images))

    def _row(self, path: Path, folder: Path, row: str, entry: dict[str, Any]) -> Iterable[Sample]:
        named = entry.get("image") or []
        names = [named] if isinstance(named, str) else list(named)
        turns = entry["conversations"]
        if not turns or len(turns) % 2:
            raise ValueError(f"field 'conversations' has {len(turns)} turns, expected questions each with an answer")
        markers = sum(turn["value"].count(MARKER) for turn in turns)
        if markers not in (0, len(names)):
            raise ValueError(f"{markers} {MARKER} markers for {len(names)} images")
        said: list[str] = []
        for number, (ask, reply) in enumerate(zip(turns[::2], turns[1::2], strict=True)):
            if ask["from"] not in ROLES[0] or reply["from"] not in ROLES[1]:
                raise ValueError(
                    f"turns come from {ask['from']!r} and {reply['from']!r}, expected human and gpt in turn"
                )
            question = text({"value": ask["value"].replace(MARKER, "")}, "value")
            answer = text(reply, "value")
            # The format does not list the choices, so any letter is one.
            choices = tuple(LETTERS) if self.score == "choice" else ()
            check_scorable(self.score, [answer], choices)
            yield Sample.single_turn(
                id=str(entry["id"]) if len(turns) == 2 else f"{entry['id']}#{number}",
                question="\n".join([*(said if self.history else ()), self.ask(question=question)]),
                answer=answer,
                images=tuple(folder / name for name in names),
                references=(answer,),
                choices=choices,
                origin=f"{path}:{row}",
            )
            said += [question, answer]

    def metric(self) -> "AnswerMetric":
        return scorer(self.score)
