"""What a command says, and refuses, before it imports the libraries that take seconds."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml

from mllm_lit import __version__
from mllm_lit.errors import UsageError
from mllm_lit.names import near, refuse_unknown, spelled, taken
from mllm_lit.parsing import check_files, pairs
from mllm_lit.part_help import asked, print_help

COMMANDS = ("fit", "validate", "test", "predict")
"""Of ``tools/fit.py``; the first is understood where none is given."""

OPTIONS = frozenset(
    ("config", "seed_everything", "trainer", "model", "data", "experiment", "version", "output", "keep_before")
) | {"ckpt_path", "show_batch", "smoke", "run"}
"""What a file of settings may hold, the parts' names without their arguments."""


def begin(words: Sequence[str]) -> None:
    """Say what is about to be done, in a line on standard error, and refuse what can be seen to be wrong.

    Prints the options of a part, and ends, where they are asked for.

    Raises:
        UsageError: A command, a name, a file of settings, or the first part of an option is unknown.
        SettingError: A file cannot be read.
    """
    if all(os.environ.get(name, "0") == "0" for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID")):
        sys.stderr.write(f"mllm_lit {__version__}: {' '.join(words) or 'no settings'}\n")
        sys.stderr.flush()
    if words and not words[0].startswith("-"):
        known_command(words[0], COMMANDS)
    if (part := asked(words)) is not None:
        print_help(*part)
        raise SystemExit
    words = spelled(beside_run(words))
    check_files(words)
    for name, value in pairs(words):
        if option := taken(f"--{name}"):
            refuse_unknown(option, value)
        if name != "config" or holds_settings(value):
            continue
        for key in yaml.safe_load(Path(value).read_text(encoding="utf-8")):
            known(str(key), value)
    for word in words:
        if word.startswith("--") and word not in ("--help", "--") and not word.startswith("--print_"):
            known(word[2:].partition("=")[0], "the command line")


def beside_run(words: Sequence[str]) -> list[str]:
    """The words, ``--run DIR`` written out: that run's settings, which the others override, place and checkpoint.

    >>> beside_run(["--model.adapter.lr", "1"])
    ['--model.adapter.lr', '1']

    Raises:
        UsageError: There is no run in the folder.
    """
    given, others = None, []
    rest = iter(words)
    for word in rest:
        option, equals, value = word.partition("=")
        if option == "--run":
            given = value if equals else next(rest, "")
        else:
            others.append(word)
    if given is None:
        return others
    folder = Path(given).expanduser().resolve()
    if not (folder / "config.yaml").is_file():
        raise UsageError(f"--run {given}: there is no config.yaml in it. Expected the directory of a run.")
    mine = ["--config", f"{folder}/config.yaml", "--output", str(folder.parent.parent)]
    mine += ["--experiment", folder.parent.name, "--version", folder.name]
    checkpoint = [] if any(word.partition("=")[0] == "--ckpt_path" for word in others) else ["--ckpt_path", "last"]
    command = others[:1] if others and others[0] in COMMANDS else []
    return [*command, *mine, *checkpoint, *others[len(command) :]]


def known_command(word: str, commands: Sequence[str]) -> None:
    """Refuse a command that there is not.

    >>> known_command("tset", ["fit", "test"])
    Traceback (most recent call last):
        ...
    mllm_lit.errors.UsageError: there is no command 'tset'; did you mean test? Commands are fit, test.
    """
    if word not in commands:
        likely = near(word, commands)
        hint = f"; did you mean {likely}?" if likely else "."
        raise UsageError(f"there is no command {word!r}{hint} Commands are {', '.join(commands)}.")


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
    mllm_lit.errors.UsageError: a.yaml: there is no setting 'modle.adapter.rank'; did you mean model or smoke? ...
    """
    first = name.partition(".")[0].rstrip("+")
    if first not in OPTIONS:
        likely = near(first, OPTIONS)
        hint = f"; did you mean {likely}?" if likely else "."
        raise UsageError(f"{where}: there is no setting {name!r}{hint} Known are {', '.join(sorted(OPTIONS))}.")
