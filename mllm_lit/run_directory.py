"""Which folder a run writes to, and where it resumes."""

import fcntl
import itertools
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from mllm_lit.errors import UserError, writing

CONFIG = "config.yaml"
FOLDER = "checkpoints"
LAST = "last.ckpt"
POLL = 1.0
"""Seconds between looks at what another run holds."""


class RunDirectoryError(UserError, ValueError):
    """The run directory that was asked for is taken, or lies somewhere else than all run directories."""


class RunDirectory(L.Callback):
    """The folder of a run, whatever its logger: claimed when the run begins, and removed if it fails to start.

    Args:
        output: The folder of all run directories.
        experiment: The run's name.
        version: Name of the run directory; ``None`` for the next free number.
        checkpoint: Where the run goes on from, if it does.
        continues: The directory holds what this run has begun.

    Attributes:
        path: The folder, ``None`` before the run begins; set it to choose one.
        draws: Give the run TensorBoard's logger in this folder.
    """

    def __init__(
        self,
        output: Path,
        experiment: str,
        version: str | None = None,
        checkpoint: Path | None = None,
        continues: bool = False,
    ) -> None:
        self.output, self.experiment, self.version = output, experiment, version
        self.checkpoint, self.continues = checkpoint, continues
        self.path: Path | None = None
        self.draws = False
        self._made = self._trained = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Claim the folder on rank zero."""
        if self.path is None and trainer.is_global_zero:
            if self.continues:
                assert self.version is not None
                self.path = self.output / self.experiment / self.version
            else:
                self.path, self._made = claim(self.output, self.experiment, self.version, self.checkpoint)
        self.path = Path(trainer.strategy.broadcast(str(self.path)))
        if trainer.is_global_zero:
            write_ids(getattr(trainer.datamodule, "sampled", {}), self.path / "ids")  # type: ignore[attr-defined]
        if self.draws and not trainer.loggers:
            trainer.logger = TensorBoardLogger(self.output, name=self.experiment, version=self.path.name)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """From here on there is something to keep."""
        self._trained = True

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave nothing behind a start that failed, unless it has answers that can be gone on from."""
        if isinstance(exception, Exception) and self._made and not self._trained and self.path is not None:
            if not any(self.path.glob("predictions/*/*")):
                shutil.rmtree(self.path, ignore_errors=True)
            elif trainer.is_global_zero:
                go_on = f"--version {self.path.name} --ckpt_path last"
                rank_zero_info(f"The answers so far are kept in {self.path}. Go on with: {go_on}")


def write_ids(sampled: Mapping[str, Sequence[str]], folder: Path) -> None:
    """Write the ids of every part of a split that is used, a file each, an id a line."""
    for label, ids in sampled.items():
        path = folder / f"{label}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{key}\n" for key in ids), encoding="utf-8")


def run_directory(trainer: L.Trainer) -> Path | None:
    """Where a run writes to: what :class:`RunDirectory` says, else the logger's folder, which all ranks ask for."""
    claimed = claimed_directory(trainer)
    if claimed is not None:
        return claimed
    return None if trainer.log_dir is None else Path(trainer.log_dir)


def claimed_directory(trainer: L.Trainer) -> Path | None:
    """What :class:`RunDirectory` says, if the trainer has one; a rank can ask for it alone."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, RunDirectory) and callback.path is not None:
            return callback.path
    return None


def kept_folder(trainer: L.Trainer) -> Path | None:
    """Where runs keep for one another what they find before training (``--keep_before``), if this one does."""
    kept = [one.kept.folder for one in trainer.callbacks if getattr(one, "kept", None) is not None]  # type: ignore[attr-defined]
    return next(iter(kept), None)


def lock(file: Path) -> int | None:
    """Hold a file against other processes, on all machines that share its folder.

    Returns:
        A file descriptor that holds it as long as it, or a process that has inherited it, is open; ``None`` where
        somebody else holds it.
    """
    held = os.open(file, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(held)
        return None
    except OSError:
        os.close(held)
        raise
    return held


@contextmanager
def one_run_at_a_time(trainer: L.Trainer, place: Path | None) -> Iterator[None]:
    """Within it, no other run looks for what is kept at ``place``, or computes it; all ranks enter together.

    Of runs that start at once, one computes, and the others find it when they enter. A run that is killed lets go.

    Args:
        trainer: Of this run.
        place: A file or folder in :func:`kept_folder`; nothing is held for any other, which this run has alone.

    Raises:
        DiskError: The folder cannot be written to, or its file system has no locks.
    """
    if place is None or place.parent != kept_folder(trainer):
        yield
        return
    held, waits = None, False
    try:
        while True:
            if trainer.is_global_zero:
                with writing(place, None, "Choose another --keep_before, or leave it out."):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    held = lock(place.with_name(f"{place.name}.lock"))
            # Ranks look in turns instead of waiting in the broadcast, which would give up after half an hour.
            if trainer.strategy.broadcast(held is not None):
                break
            if not waits:
                rank_zero_info(f"Another run computes what is to be kept in {place}; waiting for it.")
            waits = True
            time.sleep(POLL)
        yield
    finally:
        if held is not None:
            os.close(held)


def claim(output: Path, experiment: str, version: str | None, checkpoint: Path | None) -> tuple[Path, bool]:
    """The folder for a new run, made so that no other run takes it.

    Args:
        output: The folder of all run directories.
        experiment: The run's name.
        version: Name of the run directory; ``None`` for the next free number.
        checkpoint: Where the run goes on from, if it does.

    Returns:
        The folder, and whether it was made here.

    Raises:
        RunDirectoryError: The folder holds something and ``checkpoint`` is not in it, or it lies outside of ``output``.
    """
    for name, value in (("--experiment", experiment), ("--version", version)):
        if value is not None and (value in ("", ".", "..") or Path(value).name != value):
            raise RunDirectoryError(
                f"{name} is {value!r}, expected the name of a folder in {output}, without slashes. Choose the place of "
                "all run directories with --output."
            )
    folder = output / experiment
    if version is not None:
        refuse_existing(folder, version, checkpoint)
        made = not (folder / version).is_dir()
        (folder / version).mkdir(parents=True, exist_ok=True)
        return folder / version, made
    folder.mkdir(parents=True, exist_ok=True)
    taken = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    first = 1 + max((int(number) for number in taken if number.isdigit()), default=-1)
    for number in itertools.count(first):
        try:
            (folder / f"version_{number}").mkdir()
        except FileExistsError:
            continue  # Another run was faster.
        return folder / f"version_{number}", True
    raise AssertionError


def find_last(experiment: Path, version: str | None) -> tuple[str | None, Path | None]:
    """What ``--ckpt_path last`` means.

    Args:
        experiment: The folder that holds an experiment's run directories.
        version: Name of one of them; ``None`` for the newest one that holds a checkpoint, else the one started last.

    Returns:
        The run directory's name, ``None`` if there is none yet, and its newest checkpoint, ``None`` likewise.
    """
    if version is None:
        newest = [found[0] for folder in experiment.glob(f"*/{FOLDER}") if (found := by_age(folder))]
        if newest:
            version = max(newest, key=lambda path: path.stat().st_mtime_ns).parent.parent.name
        elif runs := sorted(experiment.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime_ns):
            version = runs[-1].parent.name
        else:
            return None, None
    return version, next(iter(by_age(experiment / version / FOLDER)), None)


def refuse_existing(folder: Path, version: str, checkpoint: Path | None = None) -> None:
    """Raise if a run directory that was asked for by name holds something, unless ``checkpoint`` lies in it."""
    path = folder / version
    if not path.is_dir() or not any(path.iterdir()):
        return
    if checkpoint is None or path.resolve() not in checkpoint.resolve().parents:
        raise RunDirectoryError(
            f"The run directory {str(path)!r} exists and is not empty; nothing is overwritten. Go on with it by "
            "--ckpt_path last, choose another --version or --experiment, leave --version out for the next free "
            "number, or remove it."
        )


def by_age(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the newest first; ``last.ckpt``, another name of the newest, comes after it."""
    return sorted(folder.glob("*.ckpt"), key=lambda path: (path.stat().st_mtime_ns, path.name != LAST), reverse=True)
