"""Keeps what an untrained backbone scored, so that further runs on the same data need not score it again."""

import hashlib
import inspect
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L

import mllm_lit
from mllm_lit.data.collate import Collate
from mllm_lit.data.sample import EncodedImage, Sample
from mllm_lit.errors import writing
from mllm_lit.module import MLLMModule, Record

Scores = dict[str, dict[str, float]]


class ScoresKept:
    """Scores and answers of backbones before training: a folder each, named by all that they depend on.

    That is the backbone (its identity, dtypes, settings), the rows of every set, how the first of each looks to the
    model, the scorers, batch size, precision, device, library versions, and the code of this package and of the tasks.

    Args:
        folder: Of all of them; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def place(self, trainer: L.Trainer, module: MLLMModule) -> Path:
        """The folder of this backbone on this data; the same on every rank."""
        return self.folder / digest([json.dumps(facts(trainer, module), sort_keys=True)])[:16]

    def load(self, place: Path, predictions: Path) -> tuple[Scores, dict[str, list[Record]]]:
        """Scores and answers, which are also copied to ``predictions``."""
        predictions.mkdir(parents=True, exist_ok=True)
        answers = {}
        for file in sorted((place / "predictions").iterdir()):
            shutil.copy(file, predictions)
            answers[file.stem] = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        return json.loads((place / "scores.json").read_text(encoding="utf-8")), answers

    def save(self, place: Path, scores: Scores, predictions: Path) -> None:
        """Keep them, whole or not at all."""
        size = sum(file.stat().st_size for file in predictions.iterdir())
        with writing(place, size, "The run directory has the same scores. Leave --keep_before out, or make room."):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                content = Path(made) / "content"
                shutil.copytree(predictions, content / "predictions")
                (content / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
                if not place.exists():  # else another run was faster
                    os.replace(content, place)


def facts(trainer: L.Trainer, module: MLLMModule) -> dict[str, Any]:
    """All that the scores before training depend on."""
    assert module.loaded is not None
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    settings = {name: repr(value) for name, value in vars(module.backbone).items() if name != "path"}
    packages = ("torch", "lightning", "transformers", "peft")
    sets = [(data.tasks[name], rows) for name, rows in data.eval_rows["test"].items()]
    collate = Collate(module.processor, module.max_length, with_prompt=True)
    return {
        "backbone": [module.loaded.identity, module.start_identity, settings, digest(dtypes(module))],
        "sets": set_digests(trainer, module, "test"),
        "first rows": digest(part for _, rows in sets for part in seen(collate, rows[0])),
        "batch": data.eval_batch_size,
        "run": [str(trainer.precision), module.device.type],
        "versions": {name: version(name) for name in packages},
        "code": digest(code([task for task, _ in sets])),
    }


def set_digests(trainer: L.Trainer, module: MLLMModule, phase: str, moved: bool = False) -> dict[str, str]:
    """For every evaluated set, a digest of its rows, of how they are scored, and of how much of them is.

    Args:
        trainer: With a data module whose rows are read.
        module: Says how long answers may be.
        phase: ``test`` or ``val``.
        moved: Take pictures of the same name and size for the same, wherever they lie.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    limits = trainer.limit_test_batches if phase == "test" else trainer.limit_val_batches
    # 1.0 is all of a set and 1 its first batch.
    part = [] if isinstance(limits, float) and limits == 1 else [repr(limits), data.eval_batch_size]
    digests = {}
    for name, rows in data.eval_rows[phase].items():
        task = data.tasks[name]
        how: list[Any] = [repr(task.metric()), sorted((key, repr(value)) for key, value in vars(task).items())]
        how += [module.max_new_tokens or task.max_new_tokens, *part]
        digests[name] = digest([repr(how), *told(rows, moved)])
    return digests


def digest(parts: Iterable[str | bytes]) -> str:
    """SHA-256 of some texts, told apart."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part.encode() if isinstance(part, str) else part).digest())
    return total.hexdigest()


def dtypes(module: MLLMModule) -> Iterator[str]:
    """Name and dtype of every tensor of the backbone; adapters turn those that they open to fp32."""
    assert module.net is not None
    layout = module.adapter.attached_layout()
    named = sorted((layout.base_name(name), str(parameter.dtype)) for name, parameter in module.net.named_parameters())
    return (f"{name} {dtype}" for name, dtype in named if name in module.adapter.bare_names)


def told(rows: Iterable[Sample], moved: bool = False) -> Iterator[str]:
    """What a scorer and a model are told of every row; of a picture in a file, its path, size and time.

    Args:
        rows: The rows.
        moved: Leave out folder and time.
    """
    for row in rows:
        pictures: list[tuple[Any, ...]] = []
        for image in row.images:
            if isinstance(image, EncodedImage):
                pictures.append((image.name, hashlib.sha256(image.data).hexdigest()))
            else:
                state = image.stat()
                where = (image.name,) if moved else (str(image), state.st_mtime_ns)
                pictures.append((*where, state.st_size))
        meta = sorted(row.meta.items())
        yield repr((row.id, row.turns, row.references, row.choices, meta, pictures))


def seen(collate: Collate, row: Sample) -> Iterator[bytes]:
    """The tensors that a model is given of a row."""
    batch = collate([row])
    for name, tensor in sorted({**(batch.prompt or {}), **batch.inputs}.items()):
        yield name.encode()
        yield tensor.numpy().tobytes()


def code(objects: Iterable[object]) -> Iterator[bytes]:
    """The source files of this package and of the classes of some objects."""
    files = {*Path(mllm_lit.__file__).parent.rglob("*.py"), *(Path(inspect.getfile(type(thing))) for thing in objects)}
    return (file.read_bytes() for file in sorted(files))
