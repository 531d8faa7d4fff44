"""COCO captions, in the official files and in Karpathy's splits."""

from collections.abc import Collection, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.captions import CaptionTask
from mllm_lit.tasks.files import Key, Row, Text, by_key, collect, read_list

OFFICIAL = ("train2014", "val2014", "train2017", "val2017")


class ListedImage(Row):
    """A picture."""

    id: Key
    file_name: Text


class Caption(Row):
    """A caption of one."""

    image_id: Key
    caption: Text


class COCOCaptions(CaptionTask):
    """COCO captions (Chen et al., 2015).

    Args:
        splits: ``official`` reads ``captions_{train,val}{2014,2017}.json``; ``karpathy`` reads ``dataset_coco.json``,
            whose ``train+restval`` / ``val`` / ``test`` most papers report.
        prompt, every_caption, scorers: See :class:`CaptionTask`.
    """

    name = "coco_captions"
    published_at = "https://cocodataset.org (Karpathy's splits: https://cs.stanford.edu/people/karpathy/deepimagesent)"
    expected_tree = """
    ROOT/annotations/captions_{train2014,val2014,train2017,val2017}.json   (or ROOT/captions_*.json), or
    ROOT/dataset_coco.json for Karpathy's splits
    ROOT/{train2014,val2014,...}/{file name}   (or below ROOT/images)"""
    split_names = {"train": "train2014", "val": "val2014", "test": "val2014"}
    train_splits = ("train2014", "train2017", "train", "restval", "train+restval")

    def __init__(
        self,
        splits: Literal["official", "karpathy"] = "official",
        prompt: str | None = None,
        every_caption: bool = True,
        scorers: Sequence[str] = ("bleu", "rouge_l", "cider"),
    ) -> None:
        super().__init__(prompt, every_caption, scorers)
        self.splits = splits
        if splits == "karpathy":
            self.split_names = {"train": "train+restval", "val": "val", "test": "test"}

    def rows(self, root: Path, split: str) -> list[Sample]:
        if self.splits == "karpathy":
            folder = self.locate(root, "val2014", "images/val2014").parent
            return self.karpathy_rows(self.locate(root, "dataset_coco.json"), folder, split)
        self.check_split(split, OFFICIAL)
        path = self.locate(root, f"annotations/captions_{split}.json", f"captions_{split}.json")
        folder = self.locate(root, split, f"images/{split}")
        listed, annotations = read_list(path, ListedImage, "images"), read_list(path, Caption, "annotations")
        captions: dict[Any, list[str]] = {key: [] for key in by_key(path, listed, "id", "images")}
        said = ((f"annotations[{row}]", annotation) for row, annotation in enumerate(annotations))
        for key, caption in collect(path, said, partial(_caption, captions)):
            captions[key].append(caption)
        rows = ((f"images[{row}]", image) for row, image in enumerate(listed))
        return collect(path, rows, partial(self._row, path, folder, captions, split))

    def _row(
        self, path: Path, folder: Path, captions: dict[Any, list[str]], split: str, row: str, image: ListedImage
    ) -> Iterable[Sample]:
        where = folder / image.file_name.strip()
        return list(self.caption_rows(str(image.id), where, captions[image.id], split, f"{path}:{row}"))


def _caption(known: Collection[Any], row: str, annotation: Caption) -> Iterable[tuple[Any, str]]:
    """Image and text of one annotation."""
    if annotation.image_id not in known:
        raise ValueError(f"captions image {annotation.image_id}, which this file does not list")
    yield annotation.image_id, annotation.caption.strip()
