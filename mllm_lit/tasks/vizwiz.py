"""VizWiz: questions that blind people asked about their own photographs."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Row, Text, collect, read_list
from mllm_lit.tasks.vqa import Answer, majority

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class Entry(Row):
    """A picture with its question."""

    image: Text
    question: Text
    answers: Annotated[list[Answer], Meta(min_length=1)]
    answer_type: str = ""


class VizWiz(Task):
    """VizWiz-VQA (Gurari et al., 2018); template field ``{question}``. Trained on the most frequent answer.

    The answers of the test split are not published, so the validation split plays both roles.
    """

    name = "vizwiz"
    default_prompt = (
        'Question: {question} When the information is insufficient, respond with "Unanswerable". '
        "Answer the question using a single word or phrase."
    )
    published_at = "https://vizwiz.org/tasks-and-datasets/vqa"
    expected_tree = """
    ROOT/Annotations/{train,val}.json   (or ROOT/{train,val}.json)
    ROOT/{train,val}/VizWiz_{train,val}_{number, 8 digits}.jpg"""
    split_names = {"train": "train", "val": "val", "test": "val"}

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, ("train", "val"))
        path = self.locate(root, f"Annotations/{split}.json", f"annotations/{split}.json", f"{split}.json")
        images = self.locate(root, split, f"images/{split}")
        return collect(path, enumerate(read_list(path, Entry)), partial(self._row, path, images))

    def _row(self, path: Path, images: Path, row: str, entry: Entry) -> Iterable[Sample]:
        answers = [answer.answer for answer in entry.answers]
        image = entry.image.strip()
        yield Sample.single_turn(
            id=Path(image).stem,
            question=self.ask(question=entry.question.strip()),
            answer=majority(answers),
            images=(images / image,),
            references=tuple(answers),
            meta={"answer_type": entry.answer_type},
            origin=f"{path}:{row}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.vqa import VQAAccuracy

        return VQAAccuracy(breakdown=("answer_type",))
