"""VQAv2 and OK-VQA: open questions about COCO pictures with the answers of ten annotators."""

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import DatasetError, Fault, Task
from mllm_lit.tasks.files import by_key, collect, read_table, text

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

SHORT_ANSWER = "{question} Answer the question using a single word or phrase."


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

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, dict.fromkeys(self.split_names.values()))
        asked = self.locate(root, f"{self.prefix}OpenEnded_mscoco_{split}_questions.json")
        answered = self.locate(root, f"{self.prefix}mscoco_{split}_annotations.json")
        images = self.locate(root, split, f"images/{split}")
        [questions] = read_table(asked, "questions")
        [answers] = read_table(answered, "annotations")
        annotations = by_key(answered, answers, "question_id", "annotations")
        orphans = annotations.keys() - {entry.get("question_id") for entry in questions}
        if orphans:
            raise DatasetError.of(
                [Fault(str(answered), str(key), f"no such question_id in {asked.name}") for key in orphans]
            )
        return collect(asked, enumerate(questions), partial(self._row, asked, images, split, annotations))

    def _row(
        self, path: Path, images: Path, split: str, annotations: dict[Any, Any], row: str, entry: dict[str, Any]
    ) -> Iterable[Sample]:
        annotation = annotations.get(entry["question_id"])
        if annotation is None:
            raise ValueError(f"question_id {entry['question_id']} has no annotation")
        if annotation["image_id"] != entry["image_id"]:
            raise ValueError(
                f"asks about image {entry['image_id']}, but is annotated for image {annotation['image_id']}"
            )
        answers = annotator_answers(annotation)
        yield Sample.single_turn(
            id=str(entry["question_id"]),
            question=self.ask(question=text(entry, "question")),
            answer=annotation.get("multiple_choice_answer") or majority(answers),
            images=(images / f"COCO_{split}_{entry['image_id']:012d}.jpg",),
            references=tuple(answers),
            meta={
                "answer_type": annotation.get("answer_type", ""),
                "question_type": annotation.get("question_type", ""),
            },
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


def annotator_answers(entry: dict[str, Any]) -> list[str]:
    """The texts of a list of ``{"answer": ...}``.

    Raises:
        ValueError: The list is empty, or an answer is no text.
    """
    answers = [answer["answer"] for answer in entry["answers"]]
    if not answers:
        raise ValueError("field 'answers' is an empty list")
    if not all(isinstance(answer, str) for answer in answers):
        raise ValueError(f"field 'answers' holds something else than texts: {answers!r:.80}")
    return answers


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer, the first one of a tie.

    >>> majority(["pink", "red", "red", "pink"])
    'pink'
    """
    return Counter(answers).most_common(1)[0][0]
