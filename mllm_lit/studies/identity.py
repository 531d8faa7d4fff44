"""What the result of a run depends on: its resolved settings, the files that they name, and the code."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from mllm_lit.cli import MLLMCLI
from mllm_lit.names import CONFIGS
from mllm_lit.parsing import flatten
from mllm_lit.part_help import KEPT
from mllm_lit.studies.plan import digest

ELSEWHERE = ("config", "output", "experiment", "version", "keep_before", "ckpt_path", "show_batch", "smoke", "run")
"""Settings that say where a run is kept or what it prints, and files whose content is resolved into the rest."""
NAMES_FILES = ("root", "ids", "path", "vision", "llm", "connector_weights", "start_from")
"""Last names of settings that may name a file or folder."""


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
    code, data = contents()
    given = tree["data"].get("init_args", {})
    names = {"task": "task", "root": "root", "test_split": "split", "max_eval_samples": "max_samples"}
    target = {theirs: given[ours] for ours, theirs in names.items() if given.get(ours) is not None}
    return {"settings": settings, "data": digest([data, *listed]), "code": code, "target": target}


def listing(place: Path) -> bytes:
    """Names, sizes and times of a file, or of all files of a folder: pictures are too many to be read."""

    def lines() -> Iterator[str]:
        for file in [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file()):
            state = file.stat()
            yield f"{file} {state.st_size} {state.st_mtime_ns}"

    return "\n".join(lines()).encode()


@cache
def contents() -> tuple[str, bytes]:
    """Digests of the package's source, and of the data and weights that come with it."""
    there = (file for file in Path(__file__).parents[1].rglob("*") if file.is_file() and file.suffix != ".pyc")
    # What configs/ says is in the settings; it is within the package where that is installed, and not in a checkout.
    files = sorted(file for file in there if CONFIGS not in file.parents and KEPT not in file.parents)
    source, rest = ([file for file in files if (file.suffix == ".py") == wanted] for wanted in (True, False))
    return digest(file.read_bytes() for file in source), digest(file.read_bytes() for file in rest).encode()
