"""The embedded sets: one archive each in this package, unpacked once into the user's cache folder."""

import hashlib
import io
import os
import tempfile
import zipfile
from pathlib import Path

from mllm_lit.cache import cache_folder
from mllm_lit.tasks.base import DatasetError

ARCHIVES = Path(__file__).parent / "embedded"
"""``{set}.zip``, ``{set}_LICENSES.md`` and the checksums."""
CHECKSUMS = "SHA256SUMS"
"""A line per archive, as ``sha256sum`` writes it."""
NEEDED = {"conversations": ("vqav2",), "pope": ("coco_captions",)}
"""Sets whose pictures are another set's, found beside them."""
REMEDY = "Install mllm_lit again, or restore the file from its repository."


def unpacked(name: str, archives: Path = ARCHIVES) -> Path:
    """The folder of a set in the cache, ``embedded/{checksum}/{set}``; what is missing in it is unpacked first.

    The checksum is that of the list of checksums. Every file is moved to its place whole, so that any number of
    processes may do this at the same time, and each may be killed at any moment: the next one fills in what is missing
    or of another size.

    Args:
        name: The set.
        archives: The folder of the archives; it is only read.

    Raises:
        DatasetError: The archive is missing or damaged, or the cache folder cannot be written.
    """
    sums = _read(archives / CHECKSUMS)
    folder = cache_folder() / "embedded" / hashlib.sha256(sums).hexdigest()[:16]
    for part in (*NEEDED.get(name, ()), name):
        file = archives / f"{part}.zip"
        with zipfile.ZipFile(io.BytesIO(_verified(file, sums.decode(errors="replace")))) as archive:
            _fill(archive, folder / part)
    return folder / name


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise DatasetError(f"{file}: {error.strerror}; it is a part of this package. {REMEDY}") from error


def _verified(file: Path, sums: str) -> bytes:
    """An archive, whose checksum is the one it was published with."""
    content = _read(file)
    found = hashlib.sha256(content).hexdigest()
    expected = {name: checksum for checksum, _, name in (line.partition("  ") for line in sums.splitlines())}
    if found != expected.get(file.name):
        raise DatasetError(
            f"{file}: its SHA-256 is {found} ({len(content)} bytes); expected {expected.get(file.name)}, as in "
            f"{CHECKSUMS} beside it. {REMEDY}"
        )
    return content


def _fill(archive: zipfile.ZipFile, place: Path) -> None:
    missing = [entry for entry in archive.infolist() if not _is_there(place / entry.filename, entry.file_size)]
    if not missing:
        return
    try:
        _unpack(archive, missing, place)
    except OSError as error:
        raise DatasetError(
            f"{place.name}: the embedded data could not be unpacked into {place}: {error}. That folder must be "
            "writable, with some megabytes free; or set MLLM_LIT_CACHE to another folder."
        ) from error


def _is_there(file: Path, size: int) -> bool:
    try:
        return file.stat().st_size == size
    except OSError:
        return False


def _unpack(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo], place: Path) -> None:
    place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unpacking-", dir=place.parents[1]) as folder:
        part = Path(folder) / "part"
        for entry in entries:
            file = place / entry.filename
            file.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(archive.read(entry))
            # Pictures are told apart by size and time: the time stands for the content, and never lies in the future.
            os.utime(part, (entry.CRC >> 2, entry.CRC >> 2))
            os.replace(part, file)
