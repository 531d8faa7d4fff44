"""OCR-VQA: questions about book covers."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Row, Text, collect, read_mapping
from mllm_lit.tasks.vqa import SHORT_ANSWER

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

SPLITS = {"train": 1, "val": 2, "test": 3}


class Book(Row, rename={"url": "imageURL"}):
    """A cover with its questions."""

    url: Text
    questions: Annotated[list[Text], Meta(min_length=1)]
    answers: list[Text]
    split: Literal[1, 2, 3]


class OCRVQA(Task):
    """OCR-VQA (Mishra et al., 2019); template field ``{question}``. Every question of a book is a row."""

    name = "ocrvqa"
    default_prompt = SHORT_ANSWER
    published_at = "https://ocr-vqa.github.io"
    expected_tree = """
    ROOT/dataset.json
    ROOT/images/{book id}.{jpg,png,gif}   (as its download script names them)"""

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, SPLITS)
        path = self.locate(root, "dataset.json")
        images = self.locate(root, "images")
        books = read_mapping(path, Book)
        return collect(path, books.items(), partial(self._row, path, images, SPLITS[split]))

    def _row(self, path: Path, images: Path, split: int, key: str, book: Book) -> Iterable[Sample]:
        if book.split != split:
            return
        questions, answers = book.questions, book.answers
        if len(questions) != len(answers):
            raise ValueError(f"{len(questions)} questions, but {len(answers)} answers")
        # The download script keeps the extension of the cover's address.
        image = images / f"{key}{Path(book.url.strip()).suffix}"
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True)):
            yield Sample.single_turn(
                id=f"{key}#{number}",
                question=self.ask(question=question.strip()),
                answer=answer,
                images=(image,),
                references=(answer,),
                origin=f"{path}:{key}",
            )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.exact import ExactMatch

        return ExactMatch("lower")
