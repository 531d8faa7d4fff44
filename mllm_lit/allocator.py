"""How the C library hands out memory for tensors on a CPU: without holes that nothing fits into, and given back.

torch asks glibc for memory at multiples of 64 bytes. For that glibc cuts a piece off each end of a larger one, and
keeps the pieces for small requests, in a cache of each thread and in "fast" bins. They stay between the tensors: what a
freed tensor leaves is then too small for the next one of the same size, and a training step holds up to twice the
memory that its tensors take. Without the two caches, neighbouring pieces are joined again.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

TUNABLES = "GLIBC_TUNABLES"
"""glibc reads this environment variable when a process starts, and not again."""
JOINED = "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"


def start_again_with_joined_memory() -> None:
    """Replace this process by itself with :data:`JOINED`, unless the variable is set or there is no glibc.

    Costs a start of Python; to be called before anything else is imported. A process that runs the script beside
    something else, such as a notebook's, is left alone.
    """
    ours = sys.argv[0] in sys.orig_argv or sys.argv[0] == str(Path(__file__).with_name("__main__.py"))
    if TUNABLES not in os.environ and is_glibc() and ours:
        os.environ[TUNABLES] = JOINED
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def is_glibc() -> bool:
    """Whether the C library is GNU's."""
    try:
        return str(os.confstr("CS_GNU_LIBC_VERSION")).startswith("glibc")
    except (AttributeError, ValueError):
        return False


@contextmanager
def memory_given_back() -> Iterator[None]:
    """Hand memory that is free inside the C library back to the system, before what runs within it and after.

    Training and evaluation take pieces of other sizes: each would lie beside the other's.
    """
    _trim()
    try:
        yield
    finally:
        _trim()


def _trim() -> None:
    """Hand it back now."""
    if (library := _glibc()) is not None:
        library.malloc_trim(0)


@cache
def _glibc() -> Any:
    return ctypes.CDLL(None) if is_glibc() else None
