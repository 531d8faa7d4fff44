"""Where what is unpacked or converted once is kept."""

import os
from pathlib import Path

from mllm_lit.errors import UserError


class CacheError(UserError):
    """There is no folder to keep something in, or it cannot be written."""


def cache_folder() -> Path:
    """``$MLLM_LIT_CACHE``, else ``$XDG_CACHE_HOME/mllm_lit``, else ``~/.cache/mllm_lit``.

    Raises:
        CacheError: There is no home folder to look in.
    """
    try:
        if folder := os.environ.get("MLLM_LIT_CACHE"):
            return Path(folder).expanduser().absolute()
        if folder := os.environ.get("XDG_CACHE_HOME"):
            return Path(folder).expanduser().absolute() / "mllm_lit"
        return Path.home() / ".cache" / "mllm_lit"
    except RuntimeError as error:
        raise CacheError(f"No cache folder: {error} Set MLLM_LIT_CACHE to a folder.") from error
