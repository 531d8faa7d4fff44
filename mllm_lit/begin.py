"""What a command says, and refuses, before it imports the libraries that take seconds."""

import difflib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mllm_lit import __version__
from mllm_lit.errors import SettingError
from mllm_lit.parsing import check_files, pairs

OPTIONS = frozenset(
    ("config", "seed_everything", "trainer", "model", "data", "experiment", "version", "output", "keep_before")
) | {"ckpt_path", "show_batch"}
"""What a file of settings may hold, the parts' names without their arguments."""


def begin(words: Sequence[str]) -> None:
    """Say what is about to be done, in a line on standard error, and refuse what can be seen to be wrong.

    Raises:
        SettingError: A file of settings is missing or no YAML, or the first part of a name is unknown.
    """
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        sys.stderr.write(f"mllm_lit {__version__}: {' '.join(words) or 'no settings'}\n")
        sys.stderr.flush()
    check_files(words)
    for name, value in pairs(words):
        if name != "config" or holds_settings(value):
            continue
        if not Path(value).is_file():
            why = "it is a folder" if Path(value).is_dir() else f"there is no such file in {Path.cwd()}"
            raise SettingError(f"--config {value}: {why}. Correct the path.")
        for key in yaml.safe_load(Path(value).read_text(encoding="utf-8")):
            known(str(key), value)
    for word in words:
        if word.startswith("--") and word not in ("--help", "--") and not word.startswith("--print_"):
            known(word[2:].partition("=")[0], "the command line")


def holds_settings(value: str) -> bool:
    """Whether an argument is not the path of a file with settings, but such a file's text.

    >>> holds_settings("{data: configs/tasks/gqa.yaml}"), holds_settings("configs/scienceqa_lora.yaml")
    (True, False)
    """
    try:
        return isinstance(yaml.safe_load(value), dict)
    except yaml.YAMLError:
        return "\n" in value


def known(name: str, where: str) -> None:
    """Refuse a name that no setting begins with.

    >>> known("model.adapter.rank", "a.yaml")
    >>> known("modle.adapter.rank", "a.yaml")
    Traceback (most recent call last):
        ...
    mllm_lit.errors.SettingError: a.yaml: there is no setting 'modle.adapter.rank'; did you mean 'model'? ...
    """
    first = name.partition(".")[0].rstrip("+")
    if first not in OPTIONS:
        near = difflib.get_close_matches(first, OPTIONS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise SettingError(f"{where}: there is no setting {name!r}{hint} Known are {', '.join(sorted(OPTIONS))}.")
