"""ScienceQA: multiple-choice school questions, about half of them with an image."""

import random
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.errors import SettingError
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Index, Row, Text, collect, option, read_json, read_mapping

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SUBJECTS = {"natural science": "NAT", "social science": "SOC", "language science": "LAN"}


class Problem(Row):
    """A question by its id."""

    question: Text
    choices: Annotated[list[str], Meta(min_length=1)]
    answer: Index
    image: Text | None
    split: Literal["train", "val", "test"]
    subject: Text
    grade: str
    hint: str | None = ""
    lecture: str | None = ""
    topic: str = ""


class ScienceQA(Task):
    """ScienceQA (Lu et al., 2022); template fields ``{question}``, ``{choices}``, ``{hint}``, ``{lecture}``.

    Args:
        prompt: Template of the user's turn.
        image_only: Keep only the questions with an image (the study's evaluation subset).
        context: Put the question's hint, where it has one, on a line of its own ahead of the question.
            The study's prompt has no hint.
        order: ``shuffled`` puts each question's choices in an order of its own, drawn from its id and so the same in
            every run; ``None`` leaves the release's. The embedded release lists them by the alphabet, so that there a
            letter can be learned without looking at what stands behind it.
        answer: What is trained on and scored: ``letter`` (``B``), ``letter_text`` (``B. a magnet``, scored by its
            letter) or ``text`` (``a magnet``); ``None`` is ``letter``.
    """

    name = "scienceqa"
    default_prompt = "{question} {choices}"
    prompt_fields = ("question", "choices", "hint", "lecture")
    published_at = "https://scienceqa.github.io"
    expected_tree = """
    ROOT/problems.json
    ROOT/pid_splits.json
    ROOT/images/{train,val,test}/{pid}/image.png"""

    def __init__(
        self,
        prompt: str | None = None,
        image_only: bool = False,
        context: bool = False,
        order: Literal["shuffled"] | None = None,
        answer: Literal["letter", "letter_text", "text"] | None = None,
    ) -> None:
        super().__init__(prompt)
        if order not in (None, "shuffled"):
            raise SettingError(f"scienceqa: order is {order!r}, expected shuffled, or null for the release's")
        if answer not in (None, "letter", "letter_text", "text"):
            raise SettingError(f"scienceqa: answer is {answer!r}, expected letter, letter_text or text")
        self.image_only = image_only
        self.context = context
        self.order, self.answer = order, answer

    def rows(self, root: Path, split: str) -> list[Sample]:
        path = self.locate(root, "problems.json")
        listed = self.locate(root, "pid_splits.json")
        splits = read_json(listed, dict[str, list[str]])
        self.check_split(split, splits, listed)
        problems = read_mapping(path, Problem)
        entries = ((pid, problems.get(pid)) for pid in splits[split])
        return collect(path, entries, partial(self._row, path))

    def _row(self, path: Path, pid: str, problem: Problem | None) -> Iterable[Sample]:
        if problem is None:
            raise ValueError("listed in pid_splits.json, but not a problem of this file")
        choices, right = problem.choices, option(problem.answer, problem.choices)
        if len(choices) > len(LETTERS):
            raise ValueError(f"{len(choices)} choices, but only {len(LETTERS)} letters to name them")
        image = problem.image
        if image is None and self.image_only:
            return
        if self.order is not None:
            places = random.Random(pid).sample(range(len(choices)), len(choices))
            choices, right = [choices[place] for place in places], places.index(right)
        letter = LETTERS[right]
        answers = {"letter_text": f"{letter}. {choices[right]}", "text": choices[right]}
        hint = problem.hint or ""
        question = self.ask(
            question=problem.question.strip(),
            choices=", ".join(f"{name}.{choice}" for name, choice in zip(LETTERS, choices, strict=False)),
            hint=hint,
            lecture=problem.lecture or "",
        )
        given = [label for label, there in (("TXT", hint), ("IMG", image)) if there] or ["NO"]
        yield Sample.single_turn(
            id=pid,
            question=f"{hint}\n{question}" if self.context and hint else question,
            answer=answers.get(self.answer or "", letter),
            images=() if image is None else (path.parent / "images" / problem.split / pid / image,),
            references=(choices[right] if self.answer == "text" else letter,),
            choices=tuple(choices),
            meta={
                "subject": SUBJECTS.get(problem.subject, problem.subject),
                "given": "|".join(given),
                "grades": _grades(problem.grade),
                "topic": problem.topic,
            },
            origin=f"{path}:{pid}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics import ChoiceAccuracy, ChosenText

        labels = ("subject", "given", "grades")
        return ChosenText(labels) if self.answer == "text" else ChoiceAccuracy(labels)


def _grades(grade: str) -> str:
    """The column of the official table that ``grade1`` ... ``grade12`` belongs to."""
    number = grade.removeprefix("grade")
    if not number.isdigit() or not 1 <= int(number) <= 12:
        raise ValueError(f"field 'grade' is {grade!r}, expected grade1 ... grade12")
    return "G1-6" if int(number) <= 6 else "G7-12"
