"""Multimodal LLMs: fine-tune one on a task, and know what it forgets.

    mllm-lit fit --config scienceqa_lora            train, score before and after
    mllm-lit fit --model.adapter.help lora          the options of a part
    mllm-lit COMMAND --help                         those of a command

Commands:
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from mllm_lit import __version__
from mllm_lit.begin import COMMANDS as FIT
from mllm_lit.begin import known_command
from mllm_lit.commands import fit
from mllm_lit.errors import plain_errors

COMMANDS = {
    "fit": "fine-tune, and score before and after",
    "validate": "score the validation split, with the options of fit",
    "test": "score the test split, with the options of fit",
    "predict": "answer the test split, with the options of fit",
    "evaluate": "score a finished run or a backbone on any set",
    "ask": "ask about a picture",
    "export": "write a model that plain transformers loads",
    "merge": "merge a finished run's weights with those before training, and score",
    "study": "run a study, see how it stands, report it",
    "report": "a page of finished runs",
    "check-data": "check every sample and decode every picture of some data",
}


def main(args: Sequence[str] | None = None) -> None:
    """Run the command that the first word names."""
    command, *words = [*(sys.argv[1:] if args is None else args)] or ["--help"]
    with plain_errors():
        if command in ("-h", "--help"):
            sys.stdout.write(str(__doc__))
            sys.stdout.writelines(f"    {name:11} {what}\n" for name, what in COMMANDS.items())
            return
        if command == "--version":
            sys.stdout.write(f"mllm_lit {__version__}\n")
            return
        known_command(command, list(COMMANDS))
        if command in FIT:
            fit.main([command, *words])
        else:
            sys.exit(import_module(f"mllm_lit.commands.{command.replace('-', '_')}").main(words))


if __name__ == "__main__":
    main()
