"""VQAv2 and OK-VQA: open questions about COCO pictures with the answers of ten annotators."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import DatasetError, Fault, Task
from mllm_lit.tasks.files import Index, Key, Row, Text, by_key, collect, read_list

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

SHORT_ANSWER = "{question} Answer the question using a single word or phrase."


class Question(Row):
    """An entry of a questions file."""

    question_id: Key
    image_id: Index
    question: Text


class Answer(Row):
    """What one annotator said; nothing, perhaps."""

    answer: str


class Annotation(Row):
    """An entry of an annotations file."""

    question_id: Key
    image_id: Index
    answers: Annotated[list[Answer], Meta(min_length=1)]
    answer_type: str = ""
    question_type: str = ""


class ConsensusAnnotation(Annotation, kw_only=True):
    """One with the answer that most annotators agreed on."""

    multiple_choice_answer: Text


class VQAv2(Task):
    """VQAv2 (Goyal et al., 2017); template field ``{question}``. Trained on the consensus answer of the release."""

    name = "vqav2"
    default_prompt = SHORT_ANSWER
    published_at = "https://visualqa.org/download.html (images: https://cocodataset.org)"
    expected_tree = """
    ROOT/v2_OpenEnded_mscoco_{train2014,val2014}_questions.json
    ROOT/v2_mscoco_{train2014,val2014}_annotations.json
    ROOT/{train2014,val2014}/COCO_{train2014,val2014}_{image id, 12 digits}.jpg   (or below ROOT/images)"""
    split_names = {"train": "train2014", "val": "val2014", "test": "val2014"}
    prefix: ClassVar[str] = "v2_"
    annotation: ClassVar[type[Annotation]] = ConsensusAnnotation

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, dict.fromkeys(self.split_names.values()))
        asked = self.locate(root, f"{self.prefix}OpenEnded_mscoco_{split}_questions.json")
        answered = self.locate(root, f"{self.prefix}mscoco_{split}_annotations.json")
        images = self.locate(root, split, f"images/{split}")
        questions = read_list(asked, Question, "questions")
        annotations = by_key(
            answered, read_list(answered, self.annotation, "annotations"), "question_id", "annotations"
        )
        orphans = annotations.keys() - {entry.question_id for entry in questions}
        if orphans:
            raise DatasetError.of(
                [Fault(str(answered), str(key), f"no such question_id in {asked.name}") for key in orphans]
            )
        return collect(asked, enumerate(questions), partial(self._row, asked, images, split, annotations))

    def _row(
        self, path: Path, images: Path, split: str, annotations: dict[Any, Annotation], row: str, entry: Question
    ) -> Iterable[Sample]:
        annotation = annotations.get(entry.question_id)
        if annotation is None:
            raise ValueError(f"question_id {entry.question_id} has no annotation")
        if annotation.image_id != entry.image_id:
            raise ValueError(f"asks about image {entry.image_id}, but is annotated for image {annotation.image_id}")
        answers = [answer.answer for answer in annotation.answers]
        consensus = annotation.multiple_choice_answer if isinstance(annotation, ConsensusAnnotation) else None
        yield Sample.single_turn(
            id=str(entry.question_id),
            question=self.ask(question=entry.question.strip()),
            answer=consensus or majority(answers),
            images=(images / f"COCO_{split}_{entry.image_id:012d}.jpg",),
            references=tuple(answers),
            meta={"answer_type": annotation.answer_type, "question_type": annotation.question_type},
            origin=f"{path}:{row}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.vqa import VQAAccuracy

        return VQAAccuracy(breakdown=("answer_type",))


class OKVQA(VQAv2):
    """OK-VQA 1.1 (Marino et al., 2019); template field ``{question}``. Trained on the most frequent answer."""

    name = "okvqa"
    published_at = "https://okvqa.allenai.org/download.html (images: https://cocodataset.org)"
    expected_tree = """
    ROOT/OpenEnded_mscoco_{train2014,val2014}_questions.json
    ROOT/mscoco_{train2014,val2014}_annotations.json
    ROOT/{train2014,val2014}/COCO_{train2014,val2014}_{image id, 12 digits}.jpg   (or below ROOT/images)"""
    prefix = ""
    annotation = Annotation


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer, the first one of a tie.

    >>> majority(["pink", "red", "red", "pink"])
    'pink'
    """
    return Counter(answers).most_common(1)[0][0]
