"""What captioning tasks share: one row per image where they are scored, one per caption where they are trained on."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from zlib import crc32

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import Key, Row, Text, collect, read_list

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

BRIEF = (
    "Provide a brief description of the given image.",
    "Describe the image concisely.",
    "Offer a succinct explanation of the picture presented.",
    "Summarize the visual content of the image.",
    "Give a short and clear explanation of the subsequent image.",
    "Share a concise interpretation of the image provided.",
    "Present a compact description of the photo's key features.",
    "Relay a brief, clear account of the picture shown.",
    "Render a clear and concise summary of the photo.",
    "Write a terse but informative summary of the picture.",
    "Create a compact narrative representing the image presented.",
)
"""The brief-description instructions of LLaVA's first training stage, from which the study draws."""


class Sentence(Row):
    """A caption."""

    raw: Text


class KarpathyImage(Row):
    """A picture of a ``dataset_*.json`` by Karpathy."""

    filename: Text
    sentences: list[Sentence]
    split: Literal["train", "val", "test", "restval"]
    imgid: Key
    filepath: str = ""
    cocoid: Key | None = None


class CaptionTask(Task):
    """A task whose every image has several captions; its template has no field.

    Args:
        prompt: The instruction; ``None`` draws from the class's ``prompts`` by the image's id, the same in every run.
        every_caption: In a training split, one row for each caption of an image (ids ``image#0``, ``image#1``, ...),
            else one row with the first caption. Other splits have one row per image in any case.
        scorers: What :class:`mllm_lit.metrics.CaptionScores` computes; ``meteor`` and ``spice`` need Java.
    """

    default_prompt = BRIEF[0]
    prompt_fields = ()
    prompts: Sequence[str] = BRIEF[:1]
    train_splits: Sequence[str] = ("train",)
    vocabulary: Mapping[str, str] | None = None
    """Names of objects, where CHAIR is scored."""
    max_new_tokens = 32

    def __init__(
        self,
        prompt: str | None = None,
        every_caption: bool = True,
        scorers: Sequence[str] = ("bleu", "rouge_l", "cider"),
    ) -> None:
        super().__init__(prompt)
        if prompt is not None:
            self.prompts = (prompt,)
        self.every_caption = every_caption
        self.scorers = tuple(scorers)

    def caption_rows(
        self, key: str, image: Path, captions: Sequence[str], split: str, origin: str, objects: Iterable[str] = ()
    ) -> Iterator[Sample]:
        """The rows of one image, in which are these objects, as far as that is known.

        Raises:
            ValueError: The image has no caption, or a blank one.
        """
        if not captions:
            raise ValueError(f"image {key} has no caption")
        kept = [caption.strip() for caption in captions]
        if not all(kept):
            raise ValueError(f"image {key} has an empty caption")
        split_up = split in self.train_splits and self.every_caption
        asked = self.prompts[crc32(key.encode()) % len(self.prompts)].format()
        for number, caption in enumerate(kept if split_up else kept[:1]):
            yield Sample.single_turn(
                id=f"{key}#{number}" if split_up else key,
                question=asked,
                answer=caption,
                images=(image,),
                references=tuple(kept),
                meta={"objects": "|".join(sorted(objects))} if objects else {},
                origin=origin,
            )

    def karpathy_rows(self, path: Path, images: Path, split: str) -> list[Sample]:
        """One split of a ``dataset_*.json`` by Karpathy; ``a+b`` is the union of two."""
        entries = read_list(path, KarpathyImage, "images")
        wanted = split.split("+")
        for part in wanted:
            self.check_split(part, dict.fromkeys(entry.split for entry in entries), path)
        chosen = ((row, entry) for row, entry in enumerate(entries) if entry.split in wanted)
        return collect(path, chosen, partial(self._karpathy_row, path, images, split))

    def _karpathy_row(self, path: Path, images: Path, split: str, row: str, entry: KarpathyImage) -> Iterable[Sample]:
        image = images / entry.filepath / entry.filename.strip()
        captions = [sentence.raw for sentence in entry.sentences]
        key = str(entry.imgid if entry.cocoid is None else entry.cocoid)
        return list(self.caption_rows(key, image, captions, split, f"{path}:{row}"))

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics.caption import CaptionScores

        return CaptionScores(self.scorers, self.vocabulary)
