"""Tasks of lmms-eval (https://github.com/EvolvingLMMs-Lab/lmms-eval, read at 0.7.3) as targets and sources."""

import hashlib
import io
import warnings
from collections.abc import Collection, Iterable, Sequence
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mllm_lit.data.faults import DatasetError
from mllm_lit.data.sample import EncodedImage, ImageRef, Sample, Turn
from mllm_lit.errors import SettingError, in_range
from mllm_lit.names import near
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.files import collect, option
from mllm_lit.tasks.huggingface import entries_of
from mllm_lit.tasks.vqa import majority

if TYPE_CHECKING:
    from mllm_lit.metrics.base import AnswerMetric

MODEL = "mllm_lit"
"""Name of the model, for tasks that ask models otherwise by their names."""
LONGEST = 4096
"""Most tokens of an answer where a task does not say, as in the chat models of lmms-eval."""
TRAIN, VAL, TEST = "training_split", "validation_split", "test_split"


class LmmsEval(Task):
    """A task of lmms-eval: its documents, pictures, questions, answers and scores, trained on or measured here.

    Questions are what its chat models are given (``doc_to_messages``, else ``doc_to_visual`` and ``doc_to_text``);
    template field ``{question}``. What ``doc_to_target`` gives is trained on; of several answers, the most frequent
    one. Scores are those of ``process_results`` and ``aggregation``; the first metric counts.

    Splits are called as in a task file, ``training_split``, ``validation_split`` and ``test_split``; where one of the
    last two is not named there, the other is taken. Any split of the data set can be named in their place.

    The rows, pictures included, are kept in memory.

    Args:
        name: Of the task in lmms-eval, or in a file below ``include_path``.
        include_path: A folder with further task files.
        prompt: Template of the user's turn.
        scale: Points for 1 of its scores: 100 for shares of 1, which ``None`` takes for granted, 1 for points.
        max_new_tokens: Longest answer that is generated; ``None`` for the task's own, or 4096 if it has none.
    """

    name = "lmms_eval"
    default_prompt = "{question}"
    published_at = "https://github.com/EvolvingLMMs-Lab/lmms-eval"
    expected_tree = """
    FOLDER/{any name}.yaml      (include_path: FOLDER; only for task files of your own)
    FOLDER/utils.py"""
    split_names: dict[str, str] = {"train": TRAIN, "val": VAL, "test": TEST}
    has_root: ClassVar[bool] = False

    def __init__(
        self,
        name: str | None = None,
        include_path: Path | None = None,
        prompt: str | None = None,
        scale: float | None = None,
        max_new_tokens: int | None = None,
    ) -> None:
        super().__init__(prompt)
        self.task, self.include_path = name, include_path
        if name is not None:
            self.name = f"lmms_eval_{name}"
        self.scale = in_range("data.task.scale", scale, above=0)
        self.longest = in_range("data.task.max_new_tokens", max_new_tokens, 1)

    @property
    def max_new_tokens(self) -> int:  # type: ignore[override]
        """Longest answer that is generated."""
        return self.longest or (self._opened().config.generation_kwargs or {}).get("max_new_tokens", LONGEST)

    def rows(self, root: Path, split: str) -> list[Sample]:
        """See :meth:`Task.rows`; the root is not looked at, the task file says where its data are."""
        name = self._split(split)
        docs = documents(self.task, self.include_path, name)
        source = f"{self.name}/{name}"
        pictures: dict[bytes, EncodedImage] = {}
        rows = collect(Path(source), entries_of(source, docs), partial(self._row, name, pictures))
        if not any(row.answer.strip() for row in rows):
            raise DatasetError(f"{source} has no answers: lmms-eval's doc_to_target gives a blank one for every row.")
        return rows

    def training_rows(self, root: Path, split: str, scored: Collection[str]) -> list[Sample]:
        """See :meth:`Task.training_rows`."""
        name = self._split(split)
        if name in {self._split(one) for one in scored}:
            raise DatasetError(
                f"{self.name} would be trained on its split {name!r}, which is scored, too. Name another one "
                f"(data.train_split); there are: {', '.join(self._opened().dataset)}"
            )
        return self.rows(root, split)

    def metric(self) -> "AnswerMetric":
        from mllm_lit.metrics import LmmsEvalScores

        docs = partial(documents, self.task, self.include_path)
        return LmmsEvalScores(self._opened(), docs, self.scale, definition(self.task, self.include_path))

    def _opened(self) -> Any:
        return opened(self.task, self.include_path)

    def _split(self, split: str) -> str:
        """The data set's name of a split."""
        task = self._opened()
        config = task.config
        scored = {TEST: config.test_split or config.validation_split, VAL: config.validation_split or config.test_split}
        name: str | None = {TRAIN: config.training_split, **scored}.get(split, split)
        if name is None:
            raise DatasetError(
                f"{self.name}: its task file names no {split}. Name a split to train on (data.train_split), or have it "
                f"as a source; there are: {', '.join(task.dataset)}"
            )
        self.check_split(name, task.dataset)
        return name

    def _row(self, split: str, pictures: dict[bytes, EncodedImage], row: str, doc: dict[str, Any]) -> Iterable[Sample]:
        task = self._opened()
        origin = f"{self.name}/{split}:{row}"
        turns, images = _asked(task.doc_to_messages(doc), pictures, origin)
        turns[-1] = Turn("user", self.ask(question=turns[-1].text))
        answers = _answers(task, doc)
        yield Sample(
            id=row,
            turns=(*turns, Turn("assistant", majority(answers))),
            images=tuple(images),
            references=tuple(answers),
            meta={"split": split, "row": row},
            origin=origin,
        )


def _asked(
    messages: Sequence[dict[str, Any]], kept: dict[bytes, EncodedImage], where: str
) -> tuple[list[Turn], list[ImageRef]]:
    """What is said before the answer, and the pictures that come ahead of it."""
    turns: list[Turn] = []
    images: list[ImageRef] = []
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        kinds = [part["type"] for part in parts]
        if other := sorted({*kinds} - {"image", "text"}):
            raise ValueError(f"it shows {' and '.join(other)}; this package reads texts and pictures")
        if kinds != sorted(kinds):
            raise ValueError("a picture stands behind a text; samples have pictures ahead of the text")
        images += [_picture(part["url"], kept, where) for part in parts if part["type"] == "image"]
        turns.append(Turn(message["role"], "".join(part["text"] for part in parts if part["type"] == "text")))
    if [turn.role for turn in turns] not in (["user"], ["system", "user"]):
        raise ValueError(f"the turns are {[turn.role for turn in turns]}, expected one question")
    return turns, images


def _picture(shown: Any, kept: dict[bytes, EncodedImage], where: str) -> ImageRef:
    """A picture as it comes, encoded without loss; one that was seen before is that one."""
    if isinstance(shown, str):
        return Path(shown)
    import numpy as np
    from PIL import Image

    file = io.BytesIO()
    # Of an array, as what else PIL knows of a picture (its orientation, say) would be written and obeyed.
    Image.fromarray(np.asarray(shown.convert("RGB"))).save(file, "PNG", compress_level=1)
    data = file.getvalue()
    return kept.setdefault(data, EncodedImage(data, where))


def _answers(task: Any, doc: dict[str, Any]) -> list[str]:
    target = task.doc_to_target(doc)
    if isinstance(target, int) and task.config.doc_to_choice is not None:
        choices = task.doc_to_choice(doc)
        target = choices[option(target, choices, "doc_to_target")]
    answers = target if isinstance(target, list) and target else [target]
    if not all(isinstance(answer, str | int | float) for answer in answers):
        raise ValueError(f"doc_to_target gives {target!r:.80}, expected a text, a number or a list of them")
    return [str(answer) for answer in answers]


def harness() -> Any:
    """The package ``lmms_eval``, with its evaluator and its tasks.

    Raises:
        SettingError: It cannot be imported.
    """
    from PIL import ImageFile

    strict = ImageFile.LOAD_TRUNCATED_IMAGES
    with warnings.catch_warnings():  # lmms-eval silences all warnings of the process
        try:
            import lmms_eval.evaluator
            import lmms_eval.tasks
        except ImportError as error:
            raise SettingError(
                f"lmms-eval cannot be imported ({error}). Install it beside this package: pip install --no-deps "
                "lmms-eval, and pip install 'mllm_lit[lmms-eval]' for what its evaluator imports."
            ) from error
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = strict  # nor may it change what this package takes for a picture
    return lmms_eval


@cache
def _manager(include_path: Path | None) -> Any:
    return harness().tasks.TaskManager("WARNING", include_path and str(include_path), model_name=MODEL)


def task_manager(names: Sequence[str], include_path: Path | None = None) -> Any:
    """What finds the tasks of lmms-eval.

    Args:
        names: Of tasks that have to be there.
        include_path: A folder with further task files.

    Raises:
        SettingError: There is no such folder or task, or no lmms-eval.
    """
    if include_path is not None and not include_path.is_dir():
        raise SettingError(f"There is no folder {include_path} (tried {include_path.absolute()}).")
    manager = _manager(include_path)
    for name in names:
        if name not in manager.all_tasks:
            likely = near(name, manager.all_tasks)
            hint = f"did you mean {likely}?" if likely else "lmms-eval tasks list shows them, include_path adds yours."
            raise SettingError(f"lmms-eval has no task {name!r}; {hint}")
    return manager


@cache
def opened(name: str | None, include_path: Path | None) -> Any:
    """A task of lmms-eval with its data, as lmms-eval's chat models are given it.

    Args:
        name: Of the task.
        include_path: A folder with further task files.

    Raises:
        SettingError: There is no such task, or it is of a kind that cannot be trained on and measured here.
        DatasetError: It cannot be loaded.
    """
    if name is None:
        raise SettingError("data.task.name is not set; it says which task of lmms-eval is meant.")
    manager = task_manager([name], include_path)
    told = manager.task_index[name]
    if told["type"] != "task":
        raise SettingError(f"{name} of lmms-eval is a {told['type']}; expected the name of a task that is one YAML.")
    try:
        config = harness().utils.load_yaml_config(told["yaml_path"], mode="full")
    except Exception as error:  # of a module beside it, which is a program of its own
        raise _unusable(name, error) from error
    if why := _refused(config):
        raise SettingError(f"{name} of lmms-eval {why}; it cannot be trained on or measured here (docs/harnesses.md).")
    try:
        return manager.load_task_or_group([name], "chat")[name]
    except Exception as error:
        raise _unusable(name, error) from error


def _unusable(name: str, error: Exception) -> DatasetError:
    last = getattr(error, "last_attempt", None)  # lmms-eval tries several times
    cause = error if last is None else last.exception()
    told = str(cause).strip() or "without a word"
    return DatasetError(f"{name} of lmms-eval cannot be loaded: {type(cause).__name__}: {told.splitlines()[0]}")


def _refused(config: dict[str, Any]) -> str:
    """What about a task file does not go together with rows of questions and greedy answers; nothing if all does."""
    kind = config.get("output_type", "generate_until")
    generation = config.get("generation_kwargs") or {}
    sampled = generation.get("do_sample") and generation.get("temperature")
    reasons = {
        f"has output_type {kind}, not generate_until": kind != "generate_until",
        "has no answers (doc_to_target)": config.get("doc_to_target") in (None, ""),
        "is answered by sampling or beams": bool(sampled) or (generation.get("num_beams") or 1) > 1,
        "is answered several times (repeats)": config.get("repeats", 1) != 1,
        "takes reasoning out of answers": bool(config.get("reasoning_tags") or config.get("auto_strip_thinking")),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


@cache
def definition(name: str | None, include_path: Path | None) -> str:
    """SHA-256 of the version of lmms-eval and of the files beside a task's."""
    folder = Path(task_manager([name or ""], include_path).task_index[name]["yaml_path"]).parent
    parts = [version("lmms-eval").encode()]
    parts += [file.read_bytes() for file in sorted(folder.iterdir()) if file.suffix in (".py", ".yaml")]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


@cache
def documents(name: str | None, include_path: Path | None, split: str) -> Any:
    """The documents of a split.

    Args:
        name: Of the task.
        include_path: A folder with further task files.
        split: The data set's name of it.
    """
    task = opened(name, include_path)
    config, docs = task.config, task.dataset[split]
    # lmms-eval has done it with those that it knows.
    known = (config.training_split, config.validation_split, config.test_split, config.fewshot_split)
    return docs if split in known or config.process_docs is None else config.process_docs(docs)
