"""What is wrong with a file or a sample of a data set, and how that is said."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from mllm_lit.errors import UserError

SHOWN_FAULTS = 20


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with one row.

    Attributes:
        file: The file the row was read from, or the image that cannot be used.
        row: Its position (a list's index from 0, a mapping's key, a line's number from 1).
        reason: What was found, and what was expected.
    """

    file: str
    row: str
    reason: str

    def __str__(self) -> str:
        return f"{self.file}:{self.row}: {self.reason}" if self.row else f"{self.file}: {self.reason}"


class DatasetError(UserError):
    """A dataset is missing, incomplete or malformed; the message names the file, the row and the remedy.

    Attributes:
        faults: Every malformed row that was found, for a report by machine; empty if the fault is not in a row.
    """

    def __init__(self, message: str, faults: Iterable[Fault] = ()) -> None:
        super().__init__(message)
        self.faults: list[Fault] = list(faults)

    @classmethod
    def of(cls, faults: Sequence[Fault]) -> "DatasetError":
        """One error for many faults; the first of them are spelled out."""
        lines = [f"{len(faults)} faulty row{'s' if len(faults) > 1 else ''}:"]
        lines += [f"  {fault}" for fault in faults[:SHOWN_FAULTS]]
        if len(faults) > SHOWN_FAULTS:
            lines.append(f"  ... and {len(faults) - SHOWN_FAULTS} more; tools/check_data.py lists them all")
        return cls("\n".join(lines), faults)


def read_text(path: Path) -> str:
    """A file's UTF-8 text.

    Raises:
        DatasetError: It cannot be opened, is compressed, or is not UTF-8 (the message gives the line).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
    if data[:2] == b"\x1f\x8b":
        raise DatasetError(f"{path} is compressed (gzip); unpack it: gunzip -S '' or zcat FILE > FILE.json")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(
            f"{path}: line {line}, byte {error.start} is not UTF-8 text (0x{data[error.start]:02x}); "
            "convert it, for instance with: iconv -f latin1 -t utf-8"
        ) from error
