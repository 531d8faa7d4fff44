"""Packs the sets: an archive each, the same bytes from the same files, with the licences readable beside it."""

import hashlib
import shutil
import zipfile
from pathlib import Path

from mllm_lit.tasks import EMBEDDED
from mllm_lit.tasks.embedded_data import CHECKSUMS


def pack(folder: Path, archive: Path) -> None:
    """Put every file of a folder into a zip file: names sorted, times and modes fixed, pictures as they are."""
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    with zipfile.ZipFile(archive, "w") as out:
        for name, file in sorted(files.items()):
            entry = zipfile.ZipInfo(name)  # Its time is the first of 1980.
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            kind = zipfile.ZIP_STORED if file.suffix in (".png", ".jpg") else zipfile.ZIP_DEFLATED
            out.writestr(entry, file.read_bytes(), kind, compresslevel=9)


def pack_sets(data: Path, archives: Path) -> None:
    """Write the archives of all sets, their licences and their checksums.

    Args:
        data: A folder per set.
        archives: Where they go.
    """
    archives.mkdir(parents=True, exist_ok=True)
    lines = []
    for name in sorted(EMBEDDED):
        archive = archives / f"{name}.zip"
        pack(data / name, archive)
        shutil.copy(data / name / "LICENSES.md", archives / f"{name}_LICENSES.md")
        lines.append(f"{hashlib.sha256(archive.read_bytes()).hexdigest()}  {archive.name}\n")
    (archives / CHECKSUMS).write_text("".join(lines), encoding="utf-8", newline="\n")


def unpack_sets(archives: Path, data: Path) -> None:
    """The content of all archives, a folder per set."""
    for name in EMBEDDED:
        with zipfile.ZipFile(archives / f"{name}.zip") as archive:
            archive.extractall(data / name)
