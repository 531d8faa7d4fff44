"""What the result of a run depends on: its resolved settings, the files that they name, and the code."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from mllm_lit.backbones.load import EMBEDDED
from mllm_lit.cli import MLLMCLI
from mllm_lit.names import CONFIGS
from mllm_lit.parsing import flatten
from mllm_lit.studies.plan import NONE, digest
from mllm_lit.tasks.embedded_data import ARCHIVES, NEEDED

ELSEWHERE = ("config", "output", "experiment", "version", "keep_before", "ckpt_path", "show_batch", "smoke", "run")
"""Settings that say where a run is kept or what it prints, and files whose content is resolved into the rest."""
NAMES_FILES = ("root", "ids", "path", "vision", "llm", "connector_weights", "start_from", "questions", "synonyms")
"""Last names of settings that may name a file or folder."""
ABOUT = ("LICENSES.md", "scores.json")
"""Files beside the weights of a backbone that say something of it, and change nothing."""


class Resolved(MLLMCLI):
    """The command line read, and nothing made of it."""

    def _set_seed(self) -> None:
        """The process that asks is not the run."""

    def instantiate_classes(self) -> None:
        """See the class."""


def facts(words: Sequence[str]) -> dict[str, Any]:
    """What the result of ``tools/fit.py WORDS`` depends on.

    Returns:
        ``settings`` by dotted name; ``data``, a digest of the files that they name and of those in the package;
        ``code``, a digest of the package's source; ``target``, what is trained on as a set that another run can score.
    """
    read = Resolved(words)
    tree = yaml.safe_load(read.parser.dump(read.config, skip_unset=False, skip_validation=True))
    settings = flatten({key: value for key, value in tree.items() if key not in ELSEWHERE})
    named = (Path(str(value)).expanduser() for key, value in settings.items() if key.split(".")[-1] in NAMES_FILES)
    listed = [listing(place) for place in sorted({place.absolute() for place in named}) if place.exists()]
    data = digest(_content(file) for file in package_data(settings)).encode()
    given = tree["data"].get("init_args", {})
    names = {"task": "task", "root": "root", "test_split": "split", "max_eval_samples": "max_samples"}
    target = {theirs: given[ours] for ours, theirs in names.items() if given.get(ours) is not None}
    return {"settings": settings, "data": digest([data, *listed]), "code": code_digest(), "target": target}


@cache
def _content(file: Path) -> bytes:
    return digest([file.name.encode(), file.read_bytes()]).encode()


def listing(place: Path) -> bytes:
    """Names, sizes and times of a file, or of all files of a folder: pictures are too many to be read."""

    def lines() -> Iterator[str]:
        for file in [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file()):
            state = file.stat()
            yield f"{file} {state.st_size} {state.st_mtime_ns}"

    return "\n".join(lines()).encode()


def package_data(settings: Mapping[str, Any]) -> list[Path]:
    """What a run reads of the data and weights that come with the package: archives of its tasks, its backbone's files.

    Args:
        settings: By dotted name; the value at ``….task`` is the class.
    """
    without_root = (
        value
        for key, value in settings.items()
        if key.split(".")[-1] == "task" and settings.get(f"{key.removesuffix('task')}root") in NONE
    )
    names = {getattr(_named(str(value)), "name", "") for value in without_root}
    names |= {needed for name in names for needed in NEEDED.get(name, ())}
    archives = [ARCHIVES / f"{name}.zip" for name in sorted(names)]
    backbone = [value for key, value in settings.items() if key.startswith("model.backbone.")]
    folders = {EMBEDDED} if EMBEDDED.name in backbone else set()
    folders |= getattr(_named(str(settings.get("model.backbone"))), "shipped", set())
    weights = [file for folder in folders for file in folder.iterdir() if file.name not in ABOUT]
    return [file for file in archives + sorted(weights) if file.is_file()]


def _named(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(import_module(module), name, None) if module else None


@cache
def code_digest() -> str:
    """A digest of the package's source; what configs/ says is in the settings."""
    files = (file for file in Path(__file__).parents[1].rglob("*.py") if CONFIGS not in file.parents)
    return digest(file.read_bytes() for file in sorted(files))
