"""Files of ``configs/`` by name: ``--model.adapter lora`` is ``configs/adapters/lora.yaml``, from any directory."""

import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from mllm_lit.errors import UsageError

HOME = Path(__file__).parent
CONFIGS = HOME / "configs" if (HOME / "configs").is_dir() else HOME.parent / "configs"
"""Part of the package where it is installed, beside it in a checkout."""
PLACES = {
    "config": (("", "*.yaml"), ("", "study/*.yaml")),
    "trainer": (("trainer", "*.yaml"),),
    "data": (("tasks", "*.yaml"),),
    "data.sources": (("sources", "*.yaml"),),
    "data.others": (("sources", "*.yaml"),),
    "model.adapter": (("adapters", "*.yaml"),),
    "model.backbone": (("backbones", "*.yaml"),),
    "model.importance": (("importance", "*.yaml"),),
    "model.objective": (("objectives", "*.yaml"),),
    "study": (("studies", "**/*.yaml"), ("", "sequences/*.yaml")),
}
"""Option -> where in ``configs/`` the files lie that may be its value: the folder that names leave out, and a pattern.
``study`` stands for the file of ``study run``."""


def names(option: str) -> dict[str, Path]:
    """The names that an option takes, with their files.

    >>> names("trainer")["ddp"].relative_to(CONFIGS).as_posix(), "peft/location" in names("study")
    ('trainer/ddp.yaml', True)
    """
    return {
        file.relative_to(CONFIGS / folder).as_posix().removesuffix(".yaml"): file
        for folder, pattern in PLACES[option]
        for file in sorted((CONFIGS / folder).glob(pattern))
    }


def find(option: str, value: str) -> str:
    """The file that a value names, or the value as it is.

    A file that is there is taken first. Then come names, and paths that begin with ``configs/`` where there is no such
    folder.

    >>> Path(find("model.adapter", "lora")).relative_to(CONFIGS).as_posix(), find("model.adapter", "mine.Adapter")
    ('adapters/lora.yaml', 'mine.Adapter')
    """
    if os.path.isfile(value):
        return value
    if (named := names(option).get(value)) is not None:
        return str(named)
    if value.startswith("configs/") and not os.path.isdir("configs"):
        inside = CONFIGS / value.removeprefix("configs/")
        return str(inside) if inside.is_file() else value
    return value


def spelled(words: Sequence[str]) -> list[str]:
    """A command line with files in place of names.

    >>> spelled(["--trainer.devices", "2", "--data.sources=none.yaml", "-c", "none.yaml"])
    ['--trainer.devices', '2', '--data.sources=none.yaml', '--config', 'none.yaml']
    """
    found: list[str] = []
    before = ""
    for word in ("--config" if word == "-c" else word for word in words):
        option, equals, value = word.partition("=")
        if (takes := taken(option)) and equals:
            found.append(f"{option}={find(takes, value)}")
        elif (takes := taken(before)) and not word.startswith("--"):
            found.append(find(takes, word))
        else:
            found.append(word)
        before = word
    return found


def taken(word: str) -> str:
    """The option of a word whose value may be a name, else nothing.

    >>> taken("--data.init_args.sources"), taken("--data.root"), taken("sources")
    ('data.sources', '', '')
    """
    option = word.removeprefix("--").replace(".init_args.", ".")
    return option if word.startswith("--") and option in PLACES else ""


def refuse_unknown(option: str, value: str) -> None:
    """Refuse a value that is no file, no name, and nothing else that a file's place takes.

    A word with a dot may be a class, one with capitals a class of this package: the parser tells.

    Raises:
        UsageError: It is refused.

    >>> refuse_unknown("model.adapter", "mllm_lit.adapters.LoRA")
    >>> refuse_unknown("model.importance", "null")
    >>> refuse_unknown("model.adapter", "lorra")
    Traceback (most recent call last):
        ...
    mllm_lit.errors.UsageError: --model.adapter lorra: there is no such file or name; did you mean lora, rslora or dora?
    """
    read = None if "\n" in value else loaded(value)
    if isinstance(read, str) and not os.path.isfile(find(option, value)):
        path = value.endswith((".yaml", ".yml"))
        if path or option == "config" or (read.islower() and "." not in read):
            raise UsageError(f"--{option} {value}: {unknown(option, value)}")


def loaded(value: str) -> object:
    """A word as YAML; ``None`` if it is none."""
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        return None


def unknown(option: str, value: str) -> str:
    """What is to be said of a value that is no file and no name."""
    if os.path.isdir(value):
        return "it is a folder; give a file or a name."
    there = names(option)
    likely = near(value if value in there else Path(value).name.removesuffix(".yaml"), there)
    hint = f"did you mean {likely}?" if likely else f"names are {', '.join(there)}."
    return f"there is no such file or name; {hint}"


def near(word: str, known: Iterable[str]) -> str:
    """Up to three known words that are like one, capitals aside, joined for a question; nothing if none is.

    >>> near("batchsize", ["batch_size", "batch_tokens", "root"]), near("LoRa", ["LoRA", "Full"]), near("x", ["root"])
    ('batch_size', 'LoRA', '')
    """
    lower = {one.lower(): one for one in known}
    likely = [lower[one] for one in difflib.get_close_matches(word.lower(), lower, 3)]
    return " or ".join([", ".join(likely[:-1]), likely[-1]] if len(likely) > 1 else likely)
