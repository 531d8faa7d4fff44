"""A file, a name or a class that is given for a setting replaces what stood there: what it gives is what it says."""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_lit.names import names
from mllm_lit.studies.identity import Resolved

BEFORE: dict[str, Any] = {
    "model": {
        "backbone": "embedded",
        "adapter": {
            "class_path": "mllm_lit.adapters.Full",
            "init_args": {"where": "attention", "blocks": 1, "lr": 0.125, "connector": "tuned", "connector_lr": 0.25},
        },
        "importance": {
            "class_path": "mllm_lit.importance.Spider",
            "init_args": {"mask": "hard", "seed": 5, "reference": "base"},
        },
        "objective": {"class_path": "mllm_lit.objectives.KLToBase", "init_args": {"strength": 7.0, "temperature": 3.0}},
    },
    "data": {
        "class_path": "mllm_lit.data.VQADataModule",
        "init_args": {
            "task": {"class_path": "mllm_lit.tasks.ScienceQA", "init_args": {"order": "shuffled", "image_only": True}},
            "sources": {
                "class_path": "mllm_lit.data.Sources",
                "init_args": {
                    "sets": {
                        "captions": {"task": {"class_path": "mllm_lit.tasks.COCOCaptions"}, "max_samples": 3},
                        "gqa": {"task": {"class_path": "mllm_lit.tasks.GQA"}, "split": "val_balanced"},
                    }
                },
            },
            "test_split": "val",
            "max_eval_samples": 3,
            "batch_size": 5,
        },
    },
}
"""Settings of an earlier file, none of them a default."""
OPTIONS = ("model.adapter", "model.importance", "model.objective", "data")
ROUNDS = max(len(names(option)) for option in OPTIONS)


def resolved(*words: str) -> dict[str, Any]:
    """All settings."""
    read = Resolved(words)
    tree: dict[str, Any] = yaml.safe_load(read.parser.dump(read.config, skip_unset=False, skip_validation=True))
    return tree


@pytest.fixture
def before(tmp_path: Path) -> str:
    """The earlier file."""
    file = tmp_path / "before.yaml"
    file.write_text(yaml.safe_dump(BEFORE))
    return str(file)


@pytest.mark.parametrize("place", range(ROUNDS))
def test_every_name_means_the_same_whatever_stood_there(before: str, tmp_path: Path, place: int) -> None:
    given = {option: next(islice(cycle(names(option)), place, None)) for option in OPTIONS}
    words = [word for option, name in given.items() for word in (f"--{option}", name)]
    alone = resolved("--model.backbone", "embedded", *words)
    later = tmp_path / "later.yaml"
    model = {option.removeprefix("model."): name for option, name in given.items() if option != "data"}
    later.write_text(yaml.safe_dump({"model": model, "data": given["data"]}))
    for found in (resolved("--config", before, *words), resolved("--config", before, "--config", str(later))):
        assert found["model"] == alone["model"]
        assert found["data"] == alone["data"]


@pytest.mark.parametrize(
    ("words", "place", "value"),
    [
        (["--data.task", "ScienceQA"], ["data", "task", "order"], None),
        (["--data.task", "scienceqa"], ["data", "task", "image_only"], False),
        (["--data.sources", "embedded"], ["data", "sources", "sets", "captions", "max_samples"], 200),
        (["--data.task", "ScienceQA"], ["data", "batch_size"], 5),
        (["--model.adapter", "Full"], ["model", "adapter", "where"], None),
        # Single options are laid over what is there.
        (["--model.adapter.lr", "0.5"], ["model", "adapter", "where"], "attention"),
        (["--model.adapter", "small_full", "--model.adapter.lr", "0.5"], ["model", "adapter", "connector_lr"], 5e-4),
        (["--data.task.answer", "text"], ["data", "task", "order"], "shuffled"),
        (["--config", "inline"], ["model", "adapter", "where"], "attention"),
    ],
)
def test_what_is_replaced_and_what_is_laid_over(before: str, words: list[str], place: list[str], value: Any) -> None:
    inline = "{model: {adapter: {class_path: mllm_lit.adapters.Full, init_args: {lr: 0.5}}}}"
    found: Any = resolved("--config", before, *(inline if word == "inline" else word for word in words))
    for part in place:
        found = found.get("init_args", found)[part]
    assert found == value
