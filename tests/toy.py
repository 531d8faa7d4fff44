"""A task of coloured squares in three splits, a text-only row among them, for tests of the loop."""

from pathlib import Path

from PIL import Image

from mllm_lit.data.sample import Sample
from mllm_lit.metrics.base import AnswerMetric
from mllm_lit.tasks.base import Task

COLOURS = ("red", "green", "blue", "yellow", "black", "white")
ROWS = {"train": 22, "val": 5, "test": 7}


class Toy(Task):
    """Squares; reads ``{split}-{i}.png`` under its root, which it fills when missing."""

    name = "toy"
    default_prompt = "{question}"
    published_at = "nowhere"
    expected_tree = "ROOT/{split}-{i}.png"
    max_new_tokens = 3

    def rows(self, root: Path, split: str) -> list[Sample]:
        rows = []
        for i in range(ROWS[split]):
            colour = COLOURS[i % len(COLOURS)]
            path = root / f"{split}-{i}.png"
            if not path.exists():
                Image.new("RGB", (32, 32), colour).save(path)
            # Answers of unequal length, so that a mean of means is not the mean over tokens.
            answer = colour if i % 3 else f"the square is {colour}, yes"
            images = () if i % 5 == 4 else (path,)
            rows.append(
                Sample.single_turn(
                    f"{split}-{i}", "what colour is the square?", answer, images, (answer,), origin=str(path)
                )
            )
        return rows

    def metric(self) -> AnswerMetric:
        from mllm_lit.metrics.exact import ExactMatch

        return ExactMatch()


class Album(Toy):
    """Several questions a picture: one, two, up to five, and texts among them, in no order."""

    name = "album"
    questions = ("what colour is the square?", "is it red?", "how many shapes are there?", "left or right?", "and now?")

    def rows(self, root: Path, split: str) -> list[Sample]:
        rows = []
        for i, row in enumerate(super().rows(root, split)[:8]):
            for j, question in enumerate(self.questions[: 1 + i % 5]):
                answer = row.answer if j % 2 else f"{j} {row.answer}"
                rows.append(Sample.single_turn(f"{row.id}-{j}", question, answer, row.images, (answer,)))
        return rows[::2] + rows[1::2]


class ToySource(Toy):
    """The same under another name, as a source."""

    name = "toy_source"
