"""Keeps what an untrained backbone scored, so that further runs on the same data need not score it again."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L

from mllm_lit.errors import writing
from mllm_lit.evaluation.evaluator import Evaluator
from mllm_lit.evaluation.sets import Result, code, digest, seen


class ScoresKept:
    """Scores and answers of backbones before training: a folder each, named by all that they depend on.

    That is the backbone (its identity, dtypes, settings), the samples of every set, how the first of each looks to the
    model, the scorers, batches, precision, device, library versions, and the code of this package and of the tasks.

    Args:
        folder: Of all of them; made when first needed.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def check(self) -> None:
        """Find out whether something can be kept, before it was computed.

        Raises:
            DiskError: The folder cannot be written to.
        """
        with writing(self.folder, None, "Nothing was computed yet. Choose another --keep_before, or leave it out."):
            there = self.folder.is_dir()
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
            if not there:
                self.folder.rmdir()

    def place(self, trainer: L.Trainer, module: Any, evaluator: Evaluator) -> Path:
        """The folder of this backbone on this data; the same on every rank."""
        return self.folder / digest([json.dumps(facts(trainer, module, evaluator), sort_keys=True)])[:16]

    def load(self, place: Path, predictions: Path) -> Result:
        """Scores and answers, which are also copied to ``predictions``."""
        predictions.mkdir(parents=True, exist_ok=True)
        answers = {}
        for file in sorted((place / "predictions").iterdir()):
            shutil.copy(file, predictions)
            answers[file.stem] = [json.loads(line) for line in file.open(encoding="utf-8")]
        return Result("before", json.loads((place / "scores.json").read_text(encoding="utf-8")), answers)

    def save(self, place: Path, result: Result, predictions: Path) -> None:
        """Keep them, whole or not at all."""
        files = [predictions / f"{name}.jsonl" for name in result.scores]
        size = sum(file.stat().st_size for file in files)
        with writing(place, size, "The run directory has the same scores. Leave --keep_before out, or make room."):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self.folder) as made:
                content = Path(made) / "content"
                (content / "predictions").mkdir(parents=True)
                for file in files:
                    shutil.copy(file, content / "predictions")
                (content / "scores.json").write_text(json.dumps(result.scores, indent=1) + "\n", encoding="utf-8")
                if not place.exists():  # else another run was faster
                    os.replace(content, place)


def facts(trainer: L.Trainer, module: Any, evaluator: Evaluator) -> dict[str, Any]:
    """All that the scores before training depend on."""
    settings = {name: repr(value) for name, value in vars(module.backbone).items() if name != "path"}
    packages = ("torch", "lightning", "transformers", "peft")
    limit = trainer.limit_test_batches
    return {
        "backbone": [module.loaded.identity, module.start_identity, settings, digest(dtypes(module))],
        "sets": {one.name: one.digest(evaluator.max_new_tokens, limit) for one in evaluator.sets},
        "first samples": digest(part for one in evaluator.sets for part in seen(evaluator.collate, one.samples[0])),
        "tokens": evaluator.tokens,
        "run": [str(trainer.precision), module.device.type],
        "versions": {name: version(name) for name in packages},
        "code": digest(code([one.task for one in evaluator.sets])),
    }


def dtypes(module: Any) -> Iterator[str]:
    """Name and dtype of every tensor of the backbone; adapters turn those that they open to fp32."""
    layout = module.adapter.attached_layout()
    named = sorted((layout.base_name(name), str(parameter.dtype)) for name, parameter in module.net.named_parameters())
    return (f"{name} {dtype}" for name, dtype in named if name in module.adapter.bare_names)
