"""POPE: is there such an object in the picture? (a probe of hallucination)"""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Key, Row, Text, collect, read_json_lines
from mllm_lit.tasks.vqa import SHORT_ANSWER

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class Line(Row):
    """A question, one a line."""

    question_id: Key
    image: Text
    text: Text
    label: Text


class POPE(Task):
    """POPE (Li et al., 2023) on COCO; template field ``{question}``. It has no training split."""

    name = "pope"
    default_prompt = SHORT_ANSWER
    published_at = "https://github.com/RUCAIBox/POPE (images: https://cocodataset.org, val2014)"
    expected_tree = """
    ROOT/coco_pope_{random,popular,adversarial}.json   (or below ROOT/output/coco)
    ROOT/val2014/{file name}   (or below ROOT/images, or ROOT/../coco_captions)"""
    has_train_split = False
    split_names = {"train": "train", "val": "adversarial", "test": "adversarial"}

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, ("random", "popular", "adversarial"))
        name = f"coco_pope_{split}.json"
        path = self.locate(root, name, f"output/coco/{name}", f"coco/{name}")
        images = self.locate(root, "val2014", "images/val2014", "../coco_captions/val2014")
        return collect(path, read_json_lines(path, Line), partial(self._row, path, images))

    def _row(self, path: Path, images: Path, row: str, entry: Line) -> Iterable[Sample]:
        label = entry.label.strip().lower()
        if label not in ("yes", "no"):
            raise ValueError(f"field 'label' is {label!r}, expected yes or no")
        yield Sample.single_turn(
            id=str(entry.question_id),
            question=self.ask(question=entry.text.strip()),
            answer=label,
            images=(images / entry.image.strip(),),
            references=(label,),
            origin=f"{path}:{row}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.hallucination import POPEScores

        return POPEScores()
