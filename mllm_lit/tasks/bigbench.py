"""BIG-bench's multiple choice tasks: questions that people wrote for language models, without a picture."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Row, Text, collect, read_json

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class Example(Row):
    """A question and a score for each of its choices."""

    input: Text
    target_scores: Annotated[dict[Text, float], Meta(min_length=2)]


class Content(Row):
    """The file of a task."""

    examples: list[Example]
    task_prefix: str = ""


class BigBench(Task):
    """BIG-bench (Srivastava et al., 2022); template fields ``{question}``, ``{prefix}`` and ``{choices}``.

    Nothing is generated: the answer is the most likely choice, by the sum of its tokens' log-probabilities, as
    BIG-bench grades it. It has no training split.

    Args:
        tasks: Names, such as ``general_knowledge``; ``None`` for all in the root.
        prompt: Template of the user's turn.
    """

    name = "bigbench"
    default_prompt = "{prefix}{question}"
    prompt_fields = ("question", "prefix", "choices")
    published_at = "https://github.com/google/BIG-bench (bigbench/benchmark_tasks)"
    expected_tree = """
    ROOT/{task}.json   (or ROOT/{task}/task.json)"""
    has_train_split = False
    split_names = {"train": "train", "val": "test", "test": "test"}
    generates = False

    def __init__(self, tasks: Sequence[str] | None = None, prompt: str | None = None) -> None:
        super().__init__(prompt)
        self.tasks = tasks

    def rows(self, root: Path, split: str) -> list[Sample]:
        self.check_split(split, ("test",))
        names = self.tasks
        if names is None:
            apart, folders = Path(root).glob("*.json"), Path(root).glob("*/task.json")
            names = sorted({*(file.stem for file in apart), *(file.parent.name for file in folders)})
            if not names:
                self.locate(root, "{task}.json")
        files = {name: self.locate(root, f"{name}.json", f"{name}/task.json") for name in names}
        samples: list[Sample] = []
        for name, path in files.items():
            content = read_json(path, Content)
            samples += collect(path, enumerate(content.examples), partial(self._row, path, name, content.task_prefix))
        return samples

    def _row(self, path: Path, task: str, prefix: str, row: str, example: Example) -> Iterable[Sample]:
        choices, best = tuple(example.target_scores), max(example.target_scores.values())
        right = tuple(choice for choice, score in example.target_scores.items() if score == best)
        if len(right) == len(choices):
            raise ValueError(f"target_scores gives all {len(choices)} choices {best:g}; at least one has to be worse")
        yield Sample.single_turn(
            id=f"{task}/{row}",
            question=self.ask(question=example.input.strip(), prefix=prefix, choices=", ".join(choices)),
            answer=right[0],
            references=right,
            choices=choices,
            meta={"task": task},
            origin=f"{path}:examples[{row}]",
        )

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.choice import ChosenAnswer

        return ChosenAnswer(("task",))
