"""COCO captions, in the official files and in Karpathy's splits."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from mllm_lit.data.sample import Sample
from mllm_lit.tasks.captions import CaptionTask
from mllm_lit.tasks.embedded_data import unpacked
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


class Category(Row):
    """A kind of object."""

    id: Key
    name: Text


class Instance(Row):
    """An object in a picture."""

    image_id: Key
    category_id: Key


class COCOCaptions(CaptionTask):
    """COCO captions (Chen et al., 2015).

    Args:
        splits: ``official`` reads ``captions_{train,val}{2014,2017}.json``; ``karpathy`` reads ``dataset_coco.json``,
            whose ``train+restval`` / ``val`` / ``test`` most papers report.
        prompt, every_caption, scorers: See :class:`CaptionTask`.
        synonyms: With it captions get CHAIR (Rohrbach et al., 2018) beside the other scores, as ``chair_i`` and
            ``chair_s``. A text file with an object a line and its further names behind it, separated by commas, as
            https://github.com/LisaAnne/Hallucination has it; or ``embedded``, that of the embedded pictures. What is
            in a picture is what its captions name and what ``instances_*.json`` says.

    Raises:
        ValueError: The file of synonyms is missing or names an object twice, or the splits are Karpathy's.
    """

    name = "coco_captions"
    published_at = "https://cocodataset.org (Karpathy's splits: https://cs.stanford.edu/people/karpathy/deepimagesent)"
    expected_tree = """
    ROOT/annotations/captions_{train2014,val2014,train2017,val2017}.json   (or ROOT/captions_*.json;
        for CHAIR instances_*.json beside them), or
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
        synonyms: str | None = None,
    ) -> None:
        super().__init__(prompt, every_caption, scorers)
        self.splits = splits
        if synonyms is not None:
            self.vocabulary = read_synonyms(synonyms)
            if splits == "karpathy":
                raise ValueError("coco_captions: CHAIR (synonyms) is for the official splits; set splits: official")
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
        objects = {} if self.vocabulary is None else self._objects(root, split, self.vocabulary)
        rows = ((f"images[{row}]", image) for row, image in enumerate(listed))
        return collect(path, rows, partial(self._row, path, folder, captions, objects, split))

    def _row(
        self,
        path: Path,
        folder: Path,
        captions: dict[Any, list[str]],
        objects: Mapping[Any, set[str]],
        split: str,
        row: str,
        image: ListedImage,
    ) -> Iterable[Sample]:
        where, there = folder / image.file_name.strip(), objects.get(image.id, set())
        return list(self.caption_rows(str(image.id), where, captions[image.id], split, f"{path}:{row}", there))

    def _objects(self, root: Path, split: str, vocabulary: Mapping[str, str]) -> dict[Any, set[str]]:
        """Image -> the objects that are annotated in it, by the name that the vocabulary has for them."""
        path = self.locate(root, f"annotations/instances_{split}.json", f"instances_{split}.json")
        listed = [(f"categories[{row}]", one) for row, one in enumerate(read_list(path, Category, "categories"))]
        names = dict(collect(path, listed, partial(_category, vocabulary)))
        found: dict[Any, set[str]] = {}
        said = ((f"annotations[{row}]", one) for row, one in enumerate(read_list(path, Instance, "annotations")))
        for image, name in collect(path, said, partial(_instance, names)):
            found.setdefault(image, set()).add(name)
        return found


def read_synonyms(file: str) -> dict[str, str]:
    """Name -> object, of a file with an object a line and its further names behind it.

    Raises:
        ValueError: There is no such file, or a name stands for two objects.
    """
    path = unpacked("coco_captions") / "synonyms.txt" if file == "embedded" else Path(file).expanduser()
    if not path.is_file():
        raise ValueError(
            f"coco_captions: there is no file of synonyms {file!r} (tried {path.absolute()}); COCO's is "
            "data/synonyms.txt of https://github.com/LisaAnne/Hallucination; 'embedded' is that of the embedded set"
        )
    names: dict[str, str] = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        words = [word.strip().lower() for word in line.split(",") if word.strip()]
        for word in words:
            if names.setdefault(word, words[0]) != words[0]:
                raise ValueError(f"{path}:{number}: {word!r} stands for {names[word]!r} already, now for {words[0]!r}")
    return names


def _category(vocabulary: Mapping[str, str], row: str, one: Category) -> Iterable[tuple[Any, str]]:
    """Id and object of a category."""
    if one.name.strip().lower() not in vocabulary:
        raise ValueError(f"category {one.name!r} is no name of the file of synonyms; it belongs to other pictures")
    yield one.id, vocabulary[one.name.strip().lower()]


def _instance(names: Mapping[Any, str], row: str, one: Instance) -> Iterable[tuple[Any, str]]:
    """Image and object of an annotation."""
    if one.category_id not in names:
        raise ValueError(f"is of category {one.category_id}, which this file does not list")
    yield one.image_id, names[one.category_id]


def _caption(known: Collection[Any], row: str, annotation: Caption) -> Iterable[tuple[Any, str]]:
    """Image and text of one annotation."""
    if annotation.image_id not in known:
        raise ValueError(f"captions image {annotation.image_id}, which this file does not list")
    yield annotation.image_id, annotation.caption.strip()
