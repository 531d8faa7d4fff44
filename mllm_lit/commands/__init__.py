"""What ``mllm-lit`` and the scripts of ``tools/`` do, a module for each command."""

import argparse
from typing import NoReturn

from mllm_lit.names import near


class Arguments(argparse.ArgumentParser):
    """The arguments of a command; an error is a line, without the usage.

    Args:
        name: Of the command.
        text: Its description, printed as it is.
    """

    def __init__(self, name: str, text: str | None) -> None:
        super().__init__(
            prog=f"mllm-lit {name}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter
        )

    def error(self, message: str) -> NoReturn:
        """Say it, with the options that are like an unknown one, and end with status 2."""
        unknown = message.removeprefix("unrecognized arguments: ")
        likely = near(unknown.split()[0].partition("=")[0], self._option_string_actions) if unknown != message else ""
        hint = f"; did you mean {likely}?" if likely else f" (see {self.prog} --help)"
        self.exit(2, f"error: {message}{hint}\n")
