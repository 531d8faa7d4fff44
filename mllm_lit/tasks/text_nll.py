"""Text as people write it: how likely a model finds the second half of a passage."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from mllm_lit.data.faults import read_text
from mllm_lit.data.sample import Sample
from mllm_lit.errors import in_range
from mllm_lit.tasks.base import DatasetError, Task

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class TextNLL(Task):
    """Passages of plain text; template field ``{text}``, a passage's first half.

    Nothing is generated: the NLL of the second half is measured, as the answer to the first. The score is
    100 · exp(−NLL), so that more is better, as for other sources. It has no training split.

    Args:
        words: Of a passage; what is left at the end of a file is a part of its last one.
        prompt: Template of the user's turn.
    """

    name = "text_nll"
    default_prompt = "Continue this text: {text}"
    prompt_fields = ("text",)
    published_at = "any text of your own"
    expected_tree = """
    ROOT/{split}/*.txt   (UTF-8)"""
    has_train_split = False
    split_names = {"train": "train", "val": "test", "test": "test"}
    generates = False

    def __init__(self, words: int = 96, prompt: str | None = None) -> None:
        super().__init__(prompt)
        self.words = in_range("words of text_nll", words, 2)

    def rows(self, root: Path, split: str) -> list[Sample]:
        found = sorted(Path(root).glob("*/*.txt"))
        if not found:
            self.locate(root, "{split}/*.txt")
        self.check_split(split, sorted({file.parent.name for file in found}))
        return [sample for file in found if file.parent.name == split for sample in self._passages(file)]

    def _passages(self, file: Path) -> list[Sample]:
        text = read_text(file)
        starts = [found.start() for found in re.finditer(r"\S+", text)]
        if len(starts) < self.words:
            raise DatasetError(f"{file} has {len(starts)} words, fewer than a passage of {self.words} (words)")
        samples = []
        for first in range(0, len(starts) - self.words + 1, self.words):
            middle, last = first + self.words // 2, first + self.words
            end = starts[last] if len(starts) - last >= self.words else len(text)
            question = self.ask(text=text[starts[first] : starts[middle]].strip())
            rest = text[starts[middle] : end].strip()
            samples.append(
                Sample.single_turn(
                    id=f"{file.stem}/{first}",
                    question=question,
                    answer=rest,
                    references=(rest,),
                    origin=f"{file}: word {first}",
                )
            )
        return samples

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.likelihood import TextLikelihood

        return TextLikelihood()
