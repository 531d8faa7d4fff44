"""GQA: compositional questions about scenes, with one-word answers."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import DatasetError, Task
from mllm_lit.tasks.files import Row, Text, collect, read_mapping
from mllm_lit.tasks.vqa import SHORT_ANSWER

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class Types(Row):
    """What kind of question it is."""

    structural: str = ""


class Question(Row, rename={"image": "imageId"}):
    """A question by its id."""

    question: Text
    answer: Text
    image: Text
    types: Types = msgspec.field(default_factory=Types)


class GQA(Task):
    """GQA 1.2 (Hudson and Manning, 2019); template field ``{question}``.

    Splits are ``{train,val,testdev}_{balanced,all}``; ``train_all`` is a folder of shards, as published.
    """

    name = "gqa"
    default_prompt = SHORT_ANSWER
    published_at = "https://cs.stanford.edu/people/dorarad/gqa/download.html"
    expected_tree = """
    ROOT/{train,val,testdev}_balanced_questions.json   (or below ROOT/questions1.2 or ROOT/questions)
    ROOT/images/{image id}.jpg"""
    split_names = {"train": "train_balanced", "val": "val_balanced", "test": "testdev_balanced"}

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(
            split, [f"{part}_{kind}" for part in ("train", "val", "testdev") for kind in ("balanced", "all")]
        )
        stem = f"{split}_questions"
        names = [f"{folder}{stem}{end}" for folder in ("", "questions1.2/", "questions/") for end in (".json", "")]
        path = self.locate(root, *names)
        images = self.locate(root, "images")
        shards = sorted(path.glob("*.json"), key=lambda p: (len(p.name), p.name)) if path.is_dir() else [path]
        if not shards:
            raise DatasetError(f"{self.name}: {path} holds no .json shard")
        return [s for p in shards for s in collect(p, read_mapping(p, Question).items(), partial(self._row, p, images))]

    def _row(self, path: Path, images: Path, key: str, entry: Question) -> Iterable[Sample]:
        answer = entry.answer.strip()
        yield Sample.single_turn(
            id=key,
            question=self.ask(question=entry.question.strip()),
            answer=answer,
            images=(images / f"{entry.image}.jpg",),
            references=(answer,),
            meta={"structural": entry.types.structural},
            origin=f"{path}:{key}",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.exact import ExactMatch

        return ExactMatch("gqa", breakdown=("structural",))
