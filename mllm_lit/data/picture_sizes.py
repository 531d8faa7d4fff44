"""Heights and widths of many pictures, read from their headers and kept beside the data between runs."""

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from mllm_lit.data.images import picture_size
from mllm_lit.data.sample import ImageRef, Sample

Size = tuple[int, int]
"""Height and width."""
FILE = Path(".mllm_lit", "picture_sizes.msgpack")
WORTH_KEEPING = 1000
"""Sizes of fewer new pictures are not written."""


class Entry(msgspec.Struct, array_like=True):
    """A picture's file when it was read, and its size."""

    bytes: int
    modified: int
    size: Size


class PictureSizes:
    """Sizes of pictures as a model sees them (the EXIF orientation applied).

    Args:
        folder: Where they are kept, in ``.mllm_lit/picture_sizes.msgpack``; ``None`` keeps none.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.file = None if folder is None else folder / FILE

    def of(self, samples: Iterable[Sample]) -> dict[ImageRef, Size]:
        """The size of every picture of some rows.

        Raises:
            ImageError: The header of one cannot be read.
        """
        from rich.progress import track

        users = {ref: sample.origin or sample.id for sample in samples for ref in sample.images}
        kept = self._read()
        states = {ref: _state(ref) for ref in users if isinstance(ref, Path)}
        sizes: dict[ImageRef, Size] = {}
        for ref, state in states.items():
            entry = kept.get(str(ref))
            if entry is not None and (entry.bytes, entry.modified) == state:
                sizes[ref] = entry.size
        missing = [ref for ref in users if ref not in sizes]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            read: Iterable[Size] = pool.map(lambda ref: picture_size(ref, users[ref]), missing)
            if len(missing) >= WORTH_KEEPING:
                read = track(read, description="reading picture sizes", total=len(missing))
            sizes.update(zip(missing, read, strict=True))
        new = {str(ref): Entry(*states[ref], sizes[ref]) for ref in missing if isinstance(ref, Path)}
        if len(new) >= WORTH_KEEPING:
            self._write(kept | new)
        return sizes

    def _read(self) -> dict[str, Entry]:
        if self.file is None or not self.file.is_file():
            return {}
        try:
            return msgspec.msgpack.decode(self.file.read_bytes(), type=dict[str, Entry])
        except (OSError, msgspec.DecodeError):
            return {}  # Read anew, and written anew.

    def _write(self, entries: dict[str, Entry]) -> None:
        if self.file is None:
            return
        temporary = self.file.with_suffix(f".{os.getpid()}")
        try:
            self.file.parent.mkdir(exist_ok=True)
            temporary.write_bytes(msgspec.msgpack.encode(entries))
            os.replace(temporary, self.file)
        except OSError as error:
            warnings.warn(f"Picture sizes are read anew in every run: {self.file}: {error.strerror}", stacklevel=2)


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except (OSError, ValueError):
        return -1, -1  # Named when it is opened.
    return state.st_size, state.st_mtime_ns
