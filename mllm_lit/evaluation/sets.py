"""What is evaluated, and what comes out of it."""

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import mllm_lit
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import EncodedImage, Sample
from mllm_lit.tasks.base import Task

Scores = dict[str, dict[str, float]]
"""Set -> name of a score -> points; ``nll`` is in nats per answer token."""


class Record(TypedDict):
    """One evaluated sample, as written to the prediction files."""

    id: str
    image: list[str]
    question: str
    answer: str
    references: list[str]
    prediction: str
    score: float | None
    nll: float
    """Of the true answer, in nats per token."""
    answer_tokens: int
    labels: list[str]
    """What scores are broken down by."""


@dataclass
class EvaluationSet:
    """Samples of a task that are asked and scored together.

    Attributes:
        name: Of the set; names prediction files and scores.
        task: Says how long answers may be and how they are scored.
        samples: In the split's order.
        folder: Where the sizes of its pictures are kept; ``None`` keeps none.
        counts: Whether it is the target or a source; others are scored beside them, and enter no mean.
        lengths: Of the samples with their answers, in tokens; measured when they are first needed.
    """

    name: str
    task: Task
    samples: Sequence[Sample]
    folder: Path | None = None
    counts: bool = True
    lengths: list[int] | None = field(default=None, repr=False)

    @property
    def headline(self) -> str:
        """Name of the score that a table shows."""
        return self.task.metric().headline

    def digest(self, max_new_tokens: int | None, limit: float | None, moved: bool = False) -> str:
        """SHA-256 of the samples, of how they are scored, and of how much of the set is.

        Args:
            max_new_tokens: Longest answer, where it is not the task's own.
            limit: Batches that are evaluated; ``None`` or 1.0 for all.
            moved: Take pictures of the same name and size for the same, wherever they lie.
        """
        task = self.task
        how: list[Any] = [repr(task.metric()), sorted((key, repr(value)) for key, value in vars(task).items())]
        how += [max_new_tokens or task.max_new_tokens, limit if isinstance(limit, int) else None]
        return digest([repr(how), *told(self.samples, moved)])


@dataclass
class Result:
    """Of an evaluation.

    Attributes:
        phase: Its name, such as ``before``.
        scores: Of every set.
        records: Of every set, in the split's order.
    """

    phase: str
    scores: Scores
    records: dict[str, list[Record]]


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of some texts, told apart."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()


def told(samples: Iterable[Sample], moved: bool = False) -> Iterator[str]:
    """What a scorer and a model are told of every sample; of a picture in a file, its path, size and time.

    Args:
        samples: The samples.
        moved: Leave out folder and time.
    """
    for sample in samples:
        pictures: list[tuple[object, ...]] = []
        for image in sample.images:
            if isinstance(image, EncodedImage):
                pictures.append((image.name, hashlib.sha256(image.data).hexdigest()))
            else:
                state = image.stat()
                where = (image.name,) if moved else (str(image), state.st_mtime_ns)
                pictures.append((*where, state.st_size))
        meta = sorted(sample.meta.items())
        yield repr((sample.id, sample.turns, sample.references, sample.choices, meta, pictures))


def seen(collate: Collate, sample: Sample) -> Iterator[bytes]:
    """The tensors that a model is given of a sample, with its answer and without."""
    batch = Collate(collate.processor, collate.max_length, with_prompt=True)([sample])
    for name, tensor in sorted({**(batch.prompt or {}), **batch.inputs}.items()):
        yield name.encode()
        yield tensor.numpy().tobytes()


def before_training(module: Any, sample: Sample, precision: str) -> str:
    """A digest of all that makes a model what it is before training, the same on every machine.

    That is the backbone (its identity and settings, its place aside), the run that it starts from, the precision, and
    how a sample looks to it: tokens, and the sizes of pictures.

    Args:
        module: With a loaded backbone.
        sample: The first one.
        precision: The trainer's.
    """
    settings = {name: repr(value) for name, value in vars(module.backbone).items() if name != "path"}
    inputs = module.collate([sample]).inputs
    seen = [
        (name, tuple(tensor.shape), tensor.tolist() if name.endswith(("ids", "mask")) else None)
        for name, tensor in sorted(inputs.items())
    ]
    return digest([repr((module.loaded.identity, module.start_identity, settings, precision, seen))])


def code(objects: Iterable[object]) -> Iterator[bytes]:
    """The source files of this package and of the classes of some objects."""
    files = {*Path(mllm_lit.__file__).parent.rglob("*.py"), *(Path(inspect.getfile(type(thing))) for thing in objects)}
    return (file.read_bytes() for file in sorted(files))


def in_words(phase: str) -> str:
    """A phase, for the terminal.

    >>> in_words("before"), in_words("step-000250"), in_words("test")
    ('before training', 'step 250', 'test')
    """
    step = phase.removeprefix("step-")
    return {"before": "before training", "after": "after training"}.get(
        phase, phase if step == phase else f"step {int(step)}"
    )
