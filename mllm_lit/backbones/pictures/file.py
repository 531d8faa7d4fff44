"""A picture's features on disk: rows of tensors that later runs map into memory."""

import ast
import fcntl
import mmap
import os
from itertools import count
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor

from mllm_lit.errors import UserError

Key = bytes
Slots = tuple[int | None, tuple[int | None, ...] | None]
"""Where in a list of tensors the last hidden state is, and each hidden state; ``None`` for what was not asked for."""
ALIGN = 64
"""Tensors of a file begin at multiples of so many bytes."""
STEP = 1 << 26
"""Bytes of a file that are reserved at once."""


class VisionCacheError(UserError, RuntimeError):
    """The features of this backbone cannot be kept; the message says why."""


def aligned(size: int) -> int:
    """The next multiple of :data:`ALIGN`."""
    return -(-size // ALIGN) * ALIGN


def unlocked(path: Path) -> tuple[TextIO, Path]:
    """The first index that no other process has open, locked, and the file of the rows beside it.

    Raises:
        VisionCacheError: The file system has no locks.
    """
    for number in count():
        own = path.with_name(f"{path.name}-{number}" if number else path.name)
        index = own.with_suffix(".txt").open("a+", encoding="utf-8")
        try:
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            index.close()
        except OSError as error:
            raise VisionCacheError(
                f"vision_cache: {index.name} cannot be locked: {error.strerror}. Choose a folder on a local disk. "
                "Set vision_cache: null to do without."
            ) from error
        else:
            return index, own.with_suffix(".bin")
    raise AssertionError


class FeatureFile:
    """Rows of tensors in one memory-mapped file, with an index of lines beside it that is written after each row.

    Where other processes have it open, it is the first one of its further files that none has.

    Args:
        path: Without extension; ``.bin`` and ``.txt`` are added, and in further files a number ahead of them.
        limit: Bytes at most.

    Raises:
        VisionCacheError: The file system has no locks, or, later, the disk is full.
    """

    def __init__(self, path: Path, limit: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[Key, list[Tensor]] = {}
        self.used = 0
        self.slots: Slots | None = None
        self._index, data = unlocked(path)
        # Not for appending: where a file system cannot reserve, the C library writes at places of its own.
        data.touch()
        self._file = data.open("r+b")
        # Sparse: blocks are taken in steps, ahead of the rows.
        size = max(limit, self._file.seek(0, os.SEEK_END))
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._reserved = 0
        self._index.seek(0)
        text = self._index.read()
        self._index.truncate(end := text.rfind("\n") + 1)  # A line cut short by a kill; its row is written anew.
        for line in text[:end].splitlines():
            key, offset, shapes, slots = line.split("\t")
            self.slots = ast.literal_eval(slots)
            self.rows[bytes.fromhex(key)], self.used = self._views(int(offset), ast.literal_eval(shapes))

    def _views(self, offset: int, shapes: list[tuple[str, tuple[int, ...]]]) -> tuple[list[Tensor], int]:
        views = []
        for name, shape in shapes:
            dtype: torch.dtype = getattr(torch, name)
            size = int(torch.Size(shape).numel())
            views.append(torch.frombuffer(self._map, dtype=dtype, count=size, offset=offset).view(shape))
            offset += aligned(size * dtype.itemsize)
        return views, offset

    def append(self, key: Key, tensors: list[Tensor], slots: Slots) -> list[Tensor]:
        """Write a row and return it as it lies in the file."""
        shapes = [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in tensors]
        offset = self.used
        try:
            self._reserve(offset + sum(aligned(tensor.nbytes) for tensor in tensors))
            views, self.used = self._views(offset, shapes)
            for view, tensor in zip(views, tensors, strict=True):
                view.copy_(tensor)
            self._index.write(f"{key.hex()}\t{offset}\t{shapes}\t{slots}\n")
            self._index.flush()
        except OSError as error:
            raise VisionCacheError(
                f"vision_cache: {self._file.name} cannot grow beyond {self._reserved:,} bytes: {error.strerror}. What "
                "is in it stays usable. Free some space, lower vision_cache.gigabytes, choose another folder, or leave "
                "folder (or --keep_before) out to keep the features in memory."
            ) from error
        return views

    def _reserve(self, end: int) -> None:
        """Have the disk give the blocks up to ``end``: a mapped page without one ends the process by a signal."""
        for step in (STEP, 0):  # less where a whole step does not fit any more
            wanted = min(max(end, self._reserved + step), len(self._map))
            if end > self._reserved:
                try:
                    os.posix_fallocate(self._file.fileno(), self._reserved, wanted - self._reserved)
                    self._reserved = wanted
                except OSError:
                    if not step:
                        raise
