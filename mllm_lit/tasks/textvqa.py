"""TextVQA: questions that need the text in a photograph to be read."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Key, Row, Text, by_key, collect, read_list
from mllm_lit.tasks.vqa import SHORT_ANSWER, majority

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

WITH_OCR = "{question} Reference OCR token: {ocr} Answer the question using a single word or phrase."


class Entry(Row):
    """A question on a picture."""

    question_id: Key
    question: Text
    image_id: Text
    answers: list[str]


class Page(Row):
    """What was read in a picture."""

    image_id: Text
    ocr_tokens: list[str]


class TextVQA(Task):
    """TextVQA 0.5.1 (Singh et al., 2019); template fields ``{question}`` and, with ``ocr``, ``{ocr}``.

    Trained on the most frequent answer. The answers of the test split are not published, so the validation split
    plays both roles.

    Args:
        prompt: Template of the user's turn.
        ocr: Put the tokens that Rosetta read into the prompt. It raises the score: say so beside any number.
    """

    name = "textvqa"
    default_prompt = SHORT_ANSWER
    published_at = "https://textvqa.org/dataset"
    expected_tree = """
    ROOT/TextVQA_0.5.1_{train,val}.json
    ROOT/TextVQA_Rosetta_OCR_v0.2_{train,val}.json   (only for OCR tokens in the prompt)
    ROOT/train_images/{image id}.jpg   (of train and val alike)"""
    split_names = {"train": "train", "val": "val", "test": "val"}

    def __init__(self, prompt: str | None = None, ocr: bool = False) -> None:
        self.ocr = ocr
        if ocr:
            self.prompt_fields = ("question", "ocr")
        super().__init__(prompt if prompt is not None or not ocr else WITH_OCR)

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, ("train", "val"))
        path = self.locate(root, f"TextVQA_0.5.1_{split}.json")
        images = self.locate(root, "train_images", "train_val_images/train_images")
        entries = read_list(path, Entry, "data")
        pages: dict[str, Page] | None = None
        if self.ocr:
            read = self.locate(root, f"TextVQA_Rosetta_OCR_v0.2_{split}.json")
            pages = by_key(read, read_list(read, Page, "data"), "image_id", "data")
        return collect(path, enumerate(entries), partial(self._row, path, images, pages))

    def _row(self, path: Path, images: Path, pages: dict[str, Page] | None, row: str, entry: Entry) -> Iterable[Sample]:
        image, answers = entry.image_id.strip(), entry.answers
        if len(answers) != 10:
            raise ValueError(f"{len(answers)} answers; the metric is defined for 10 annotators")
        asked = {"question": entry.question.strip()}
        if pages is not None:
            if image not in pages:
                raise ValueError(f"image {image} is not among those with OCR tokens")
            asked["ocr"] = ", ".join(pages[image].ocr_tokens)
        yield Sample.single_turn(
            id=str(entry.question_id),
            question=self.ask(**asked),
            answer=majority(answers),
            images=(images / f"{image}.jpg",),
            references=tuple(answers),
            origin=f"{path}:{row}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.m4c import M4CAccuracy

        return M4CAccuracy()
