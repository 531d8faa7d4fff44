"""A disk that takes no more: which file, how much it takes, what is safe."""

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from mllm_lit import summary
from mllm_lit.errors import DiskError, writing
from tests.test_run import CONFIGS, config, run

__all__ = ["CONFIGS", "config"]  # the fixture


@contextmanager
def small_files() -> Iterator[None]:
    """No file may grow beyond 10 kB: what a write meets then, a full disk gives it, too.

    Around the write alone, since the tests' own report may go to a longer file.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


WRITERS = {
    "text": lambda path: path.write_text("a" * 100_000),
    "safetensors": lambda path: save_file({"w": torch.zeros(100_000)}, path),
    "torch": lambda path: torch.save({"w": torch.zeros(100_000)}, path),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_library_says_of_a_disk_is_named_with_sizes(writer: str, tmp_path: Path) -> None:
    """The real words: neither torch's nor safetensors' error is an ``OSError``."""
    told = r"a could not be written: .* It takes about 400,000 bytes. [\d,]+ bytes are free. Safe.$"
    path = tmp_path / "a"
    with pytest.raises(DiskError, match=f"(?s){told}"), writing(path, 400_000, "Safe."), small_files():
        WRITERS[writer](path)


def test_a_summary_that_is_cut_off_leaves_the_old_one_whole(tmp_path: Path) -> None:
    """A study reads it while a run may be writing it."""
    path = summary.write({"target": 1}, tmp_path)
    with pytest.raises(OSError, match="File too large"), small_files():
        summary.write({"target": "a" * 100_000}, tmp_path)
    assert json.loads(path.read_text()) == {"target": 1}


def test_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"), writing(tmp_path / "a"):
        raise ValueError("mine")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "safe"),
    [
        ("predictions/before/toy.jsonl", "--ckpt_path last"),
        ("predictions/after/toy.jsonl", "--ckpt_path last"),
        ("adapter", "--ckpt_path last"),
        ("kept", "Leave --keep_before out"),
    ],
)
def test_a_run_names_the_file_and_keeps_its_checkpoints(
    what: str, safe: str, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_text, real_tree = Path.write_text, __import__("shutil").copytree

    def full(path: Any) -> None:
        if what in str(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    def write_text(self: Path, *args: Any, **kwargs: Any) -> int:
        full(self)
        return real_text(self, *args, **kwargs)

    def copytree(source: Any, target: Any, *args: Any, **kwargs: Any) -> Any:
        full(target)
        return real_tree(source, target, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", write_text)
    monkeypatch.setattr("shutil.copytree", copytree)
    words = ["--config", str(config), "--trainer.max_steps", "2", "--keep_before", str(tmp_path / "kept")]
    with pytest.raises(DiskError, match=rf"{what}.* could not be written: No space left.*{safe}"):
        run(monkeypatch, *words)
    folder = tmp_path / "logs" / "toy_run" / "version_0" / "checkpoints"
    assert (folder / "last.ckpt").is_file() == (what in ("adapter", "predictions/after/toy.jsonl"))
