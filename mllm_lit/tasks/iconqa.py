"""IconQA: questions about abstract diagrams, answered with the text of an option or by filling a blank."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import DatasetError, Fault, Task
from mllm_lit.tasks.files import Index, Row, Text, collect, option, read_json

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

PROMPTS = {
    "choose_txt": "{question} Choices: {choices}. Choose an option from the choices to answer the question.",
    "fill_in_blank": "{question} Fill in the blanks in () or answer this question.",
}


class Choose(Row):
    """A question with options; the answer is one's index or its text."""

    question: Text
    choices: Annotated[list[str], Meta(min_length=1)]
    answer: Index | Text
    grade: str = ""


class Fill(Row):
    """A question with a blank."""

    question: Text
    answer: Text | int | float
    grade: str = ""


class IconQA(Task):
    """IconQA (Lu et al., 2021); template fields ``{question}`` and, for choose-text, ``{choices}``.

    Args:
        sub_task: ``choose_txt`` or ``fill_in_blank``. Choose-image, whose options are pictures, is not read.
        prompt: Template of the user's turn.
    """

    name = "iconqa"
    default_prompt = PROMPTS["choose_txt"]
    published_at = "https://iconqa.github.io"
    expected_tree = """
    ROOT/iconqa_data/iconqa/{train,val,test}/{choose_txt,fill_in_blank}/{id}/data.json
    ROOT/iconqa_data/iconqa/{train,val,test}/{choose_txt,fill_in_blank}/{id}/image.png
    (ROOT may be iconqa_data or iconqa itself)"""

    def __init__(
        self, sub_task: Literal["choose_txt", "fill_in_blank"] = "choose_txt", prompt: str | None = None
    ) -> None:
        if sub_task not in PROMPTS:
            raise ValueError(f"sub_task is {sub_task!r}; there are: {', '.join(PROMPTS)}")
        self.sub_task = sub_task
        if sub_task == "choose_txt":
            self.prompt_fields = ("question", "choices")
        super().__init__(prompt if prompt is not None else PROMPTS[sub_task])

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, self.split_names.values())
        base = f"{split}/{self.sub_task}"
        folder = self.locate(root, f"iconqa_data/iconqa/{base}", f"iconqa/{base}", base)
        ids = sorted((path.name for path in folder.iterdir() if path.is_dir()), key=lambda name: (len(name), name))
        kind: type[Choose | Fill] = Choose if self.sub_task == "choose_txt" else Fill
        samples: list[Sample] = []
        faults: list[Fault] = []
        for pid in ids:
            path = folder / pid / "data.json"
            try:
                samples += collect(path, [(pid, read_json(path, kind))], partial(self._row, path))
            except DatasetError as error:
                faults += error.faults or [Fault(str(path), "", str(error))]
        if faults:
            raise DatasetError.of(faults)
        return samples

    def _row(self, path: Path, pid: str, data: Choose | Fill) -> Iterable[Sample]:
        question = data.question.strip()
        if isinstance(data, Choose):
            choices = data.choices
            answer = choices[_chosen(data.answer, choices)]
            asked = self.ask(question=question, choices=", ".join(choices))
        else:
            choices, answer = [], str(data.answer).strip()
            asked = self.ask(question=question)
        yield Sample.single_turn(
            id=pid,
            question=asked,
            answer=answer,
            images=(path.parent / "image.png",),
            references=(answer,),
            choices=tuple(choices),
            meta={"grade": data.grade},
            origin=str(path),
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.exact import ExactMatch

        return ExactMatch("lower" if self.sub_task == "choose_txt" else "exact")


def _chosen(answer: int | str, choices: list[str]) -> int:
    """The right option's index; releases give it as such or as the option's text."""
    if not isinstance(answer, str):
        return option(answer, choices)
    folded = [choice.strip().lower() for choice in choices]
    if answer.strip().lower() not in folded:
        raise ValueError(f"field 'answer' is {answer!r}, which is none of the choices {choices}")
    return folded.index(answer.strip().lower())
