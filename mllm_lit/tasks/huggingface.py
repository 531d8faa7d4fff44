"""Any table of the Hugging Face hub, or local parquet files, with a mapping of columns."""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.data.sample import EncodedImage, ImageRef, Sample
from mllm_lit.tasks.base import DatasetError, Task
from mllm_lit.tasks.files import Key, Text, collect, column, option
from mllm_lit.tasks.general import LETTERS, SCORES, check_scorable, scorer
from mllm_lit.tasks.vqa import majority

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric


class HuggingFace(Task):
    """A table read by the ``datasets`` package (``pip install datasets``), which this package does not require.

    Template fields: ``{question}`` and, with ``choices``, ``{choices}`` (``A.first, B.second``). The answer column
    holds a text; a list of texts (annotators, captions: the most frequent one is trained on); or, with ``choices``,
    the index of the right one, which is trained on as its letter.

    The rows, encoded pictures included, are kept in memory.

    Args:
        dataset: Id on the hub, which is downloaded into the data root; ``None`` reads ``*.parquet`` below the root.
        config_name: Configuration of a dataset on the hub.
        question: Column of the question; ``None`` if the prompt has no field.
        answer: Column of the answer, or answers.
        image: Column of the picture, or list of pictures; ``None`` for text only. A cell may be empty.
        choices: Column with the list of options.
        id: Column of a unique id; ``None`` takes the row's number.
        prompt: Template of the user's turn.
        score: How answers are scored: exact, lower, gqa, vqa, m4c, choice, caption or pope.
        max_new_tokens: Longest answer that is generated.
    """

    name = "huggingface"
    default_prompt = "{question}"
    published_at = "https://huggingface.co/datasets"
    expected_tree = """
    ROOT/{split}.parquet, ROOT/{split}-00000-of-00001.parquet, ... (or below ROOT/data)"""
    split_names = {"train": "train", "val": "validation", "test": "test"}

    def __init__(
        self,
        dataset: str | None = None,
        config_name: str | None = None,
        question: str | None = "question",
        answer: str = "answer",
        image: str | None = "image",
        choices: str | None = None,
        id: str | None = None,
        prompt: str | None = None,
        score: str = "lower",
        max_new_tokens: int = 64,
    ) -> None:
        fields = {"question": question, "choices": choices}
        self.prompt_fields = tuple(field for field, column in fields.items() if column is not None)
        super().__init__("{question} {choices}" if prompt is None and choices is not None else prompt)
        if score not in SCORES:
            raise ValueError(f"score is {score!r}; there are: {', '.join(SCORES)}")
        self.dataset, self.config_name = dataset, config_name
        self.columns = {"question": question, "answer": answer, "image": image, "choices": choices, "id": id}
        self.score, self.max_new_tokens = score, max_new_tokens

    def rows(self, root: Path, split: str) -> list[Sample]:
        source, table = self._table(Path(root), split)
        missing = [name for name in self.columns.values() if name is not None and name not in table.column_names]
        if missing:
            raise DatasetError(f"{source} has no column {missing}; there are: {', '.join(table.column_names)}")
        image = self.columns["image"]
        if image is not None:
            table = undecoded(table, image)
        return collect(Path(source), entries_of(source, table), partial(self._row, source, Path(root)))

    def _table(self, root: Path, split: str) -> tuple[str, Any]:
        datasets = import_datasets(self.name)
        if self.dataset is not None:
            options = {"cache_dir": str(root)}
            self.check_split(split, datasets.get_dataset_split_names(self.dataset, self.config_name))
            table = datasets.load_dataset(self.dataset, self.config_name, split=split, **options)
            return f"{self.dataset}/{split}", table
        files = sorted([*root.glob("*.parquet"), *root.glob("data/*.parquet")])
        parts = {path: path.name.removesuffix(".parquet").split("-")[0] for path in files}
        if not files:
            self.locate(root, f"{split}.parquet", f"data/{split}.parquet")
        self.check_split(split, dict.fromkeys(parts.values()))
        chosen = [path for path, name in parts.items() if name == split]
        source = str(chosen[0] if len(chosen) == 1 else root / f"{split}-*.parquet")
        return source, read_parquet(chosen, source)

    def _row(self, source: str, root: Path, row: str, entry: dict[str, Any]) -> Iterable[Sample]:
        columns = self.columns
        asked: dict[str, str] = {}
        options: list[str] = []
        if columns["question"] is not None:
            asked["question"] = column(entry, columns["question"], Text).strip()
        if columns["choices"] is not None:
            options = column(entry, columns["choices"], list[Text])
            asked["choices"] = ", ".join(f"{name}.{choice}" for name, choice in zip(LETTERS, options, strict=False))
        references = self._answers(entry, options)
        check_scorable(self.score, references, options)
        cell = entry[columns["image"]] if columns["image"] is not None else None
        cells = cell if isinstance(cell, list) else [] if cell is None else [cell]
        yield Sample.single_turn(
            id=row if columns["id"] is None else str(column(entry, columns["id"], Key)),
            question=self.ask(**asked),
            answer=majority(references),
            images=tuple(picture_of(item, root, f"{source}:{row}") for item in cells),
            references=tuple(references),
            choices=tuple(options),
            origin=f"{source}:{row}",
        )

    def _answers(self, entry: dict[str, Any], options: list[str]) -> list[str]:
        name = self.columns["answer"] or ""
        if options and isinstance(entry[name], int):
            return [LETTERS[option(column(entry, name, int), options, name)]]
        value = column(entry, name, str | list[str])
        answers: list[str] = value if isinstance(value, list) else [value]
        if not answers:
            raise ValueError(f"column {name!r} is an empty list")
        return answers

    def metric(self) -> "AnswerMetric":
        return scorer(self.score)


def import_datasets(wanted_by: str) -> Any:
    """The optional package.

    Raises:
        DatasetError: It is not installed.
    """
    try:
        import datasets
    except ImportError as error:
        raise DatasetError(f"{wanted_by}: reading tables needs a package: pip install datasets") from error
    return datasets


def read_parquet(paths: list[Path], source: str) -> Any:
    """The rows of parquet files that are one table.

    Args:
        paths: The files.
        source: What to call them in an error.

    Raises:
        DatasetError: They cannot be read.
    """
    datasets = import_datasets(source)
    check_shards(paths)
    try:
        return datasets.load_dataset("parquet", data_files={"rows": list(map(str, paths))}, split="rows")
    except Exception as error:  # of a damaged page
        cause = error.__cause__ or error
        told = f"{type(cause).__name__}: {str(cause).splitlines()[0]}"
        raise DatasetError(f"{source}: its rows cannot be read: {told}; download it again") from error


def check_shards(paths: list[Path]) -> None:
    """Refuse files that cannot be read as one table.

    Raises:
        DatasetError: A file is no parquet file, is cut short, or has columns of other types than the first.
    """
    import pyarrow.parquet as parquet

    schemas = {}
    for path in paths:
        try:
            schemas[path] = parquet.read_schema(path)
        except Exception as error:  # pyarrow raises its own and Python's
            start = path.open("rb").read(4)
            raise DatasetError(
                f"{path} is no complete parquet file (it begins with {start!r}): {str(error).splitlines()[0]}; "
                "download it again"
            ) from error
    first = schemas[paths[0]]
    for path, schema in schemas.items():
        other = [name for name in {*first.names, *schema.names} if _type(first, name) != _type(schema, name)]
        if other:
            told = ", ".join(f"{name}: {_type(first, name)} and {_type(schema, name)}" for name in sorted(other)[:5])
            raise DatasetError(f"{path} and {paths[0]} are no shards of one table, columns differ: {told}")


def _type(schema: Any, name: str) -> str:
    return str(schema.field(name).type) if name in schema.names else "absent"


def entries_of(source: str, table: Any) -> Iterator[tuple[int, Any]]:
    """The rows of a table, from 0."""
    row = 0
    try:
        for row, entry in enumerate(table):
            yield row, entry
    except Exception as error:  # whatever a decoder of damaged pages raises
        raise DatasetError(
            f"{source}: after row {row}: {type(error).__name__}: {str(error).splitlines()[0]}"
        ) from error


def undecoded(table: Any, column: str) -> Any:
    """The table with encoded pictures, whatever the column was declared as."""
    import datasets

    feature = table.features[column]
    plain = datasets.Image(decode=False)
    if isinstance(feature, datasets.Image):
        return table.cast_column(column, plain)
    inner = getattr(feature, "feature", None)
    if isinstance(inner, datasets.Image):
        return table.cast_column(column, type(feature)(plain))
    return table


def picture_of(cell: Any, root: Path, where: str) -> ImageRef:
    """A picture from bytes, from ``{"bytes", "path"}`` or from a path."""
    if isinstance(cell, dict) and cell.get("bytes") is None:
        cell = cell.get("path")
    data = cell["bytes"] if isinstance(cell, dict) else cell
    if isinstance(data, bytes):
        return EncodedImage(data, where)
    if isinstance(data, str):
        return root / data
    raise ValueError(f"the picture is {type(cell).__name__}, expected encoded bytes or a path")
