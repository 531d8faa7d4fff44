"""Checkpoints of what trains: at an interval, at the end, and when a cluster takes the machine back."""

import contextlib
import os
import pickle
import shutil
import signal
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from mllm_lit.callbacks.progress import behind_a_batch
from mllm_lit.errors import UserError, free, in_range
from mllm_lit.run_directory import FOLDER, LAST, by_age, run_directory

TEMPORARY = ".tmp"
STOPS = (signal.SIGTERM, signal.SIGUSR1)
"""What clusters send ahead of a pre-emption or the time limit."""


class CheckpointError(UserError, RuntimeError):
    """A checkpoint cannot be read; the message names it and the newest one that can."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Files that are complete or absent: written under a temporary name, synchronised to disk, then renamed."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write a checkpoint to a file of a local or network file system."""
        path = Path(path)
        wrong = [name for name, tensor in tensors(checkpoint) if not tensor.isfinite().all()]
        if wrong:
            raise CheckpointError(
                f"{path} was not written: {len(wrong)} of its tensors hold NaN or infinity, such as {wrong[:3]}. "
                f"{self._safe(path)} Lower the learning rate or clip gradients (trainer.gradient_clip_val)."
            )
        temporary = path.with_name(path.name + TEMPORARY)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            rename(temporary, path)
        except (OSError, RuntimeError) as error:  # torch's writer says RuntimeError where the disk is full
            needed = sum(tensor.nbytes for _, tensor in tensors(checkpoint))
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CheckpointError(
                f"{path} could not be written: {getattr(error, 'strerror', None) or error}. It takes about "
                f"{needed:,} bytes, {free(path)} are free. {self._safe(path)}"
            ) from error

    def _safe(self, path: Path) -> str:
        newest = next(iter(by_age(path.parent)), None)
        return f"What was trained up to {newest} is safe." if newest else "There is no earlier checkpoint."

    def load_checkpoint(
        self, path: Any, map_location: Any | None = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint after checking it.

        Raises:
            CheckpointError: There is no such file, or it is truncated or corrupt.
        """
        return read(Path(path), weights_only=weights_only is not False)


def read(path: Path, weights_only: bool = True) -> dict[str, Any]:
    """Read a checkpoint after checking it; its tensors stay in the file until they are used.

    Of several processes that have found each other one checks, which reads all of the file.

    Raises:
        CheckpointError: There is no such file, it is truncated or corrupt, or it is none of this package.
    """
    if not path.is_file():
        there = ", ".join(str(other) for other in by_age(path.parent)) or "none"
        raise CheckpointError(f"There is no checkpoint {path}. In that folder: {there}.")
    reason = [fault(path) if first_rank() else None]
    if dist.is_available() and dist.is_initialized():
        dist.broadcast_object_list(reason)
    if reason[0]:
        good = next((other for other in by_age(path.parent) if not fault(other)), None)
        remedy = f"Resume with --ckpt_path {good}" if good else "No other checkpoint in its folder can be read"
        raise CheckpointError(f"The checkpoint {path} is truncated or corrupt ({reason[0]}). {remedy}.")
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=weights_only, mmap=True)
    except (RuntimeError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"{path} was not written by mllm_lit: it holds other things than tensors and settings, and nothing in it "
            f"was run ({str(error).splitlines()[0]}). Give a file from a run's checkpoints/ folder."
        ) from error
    if not isinstance(loaded, dict) or "mllm_lit" not in loaded:
        found = sorted(map(str, loaded))[:6] if isinstance(loaded, dict) else type(loaded).__name__
        raise CheckpointError(
            f"{path} was not written by mllm_lit (it holds {found}). Give a file from a run's checkpoints/ folder."
        )
    return loaded


def first_rank() -> bool:
    """Whether this process is the only one or the first of those that have found each other."""
    return not (dist.is_available() and dist.is_initialized()) or dist.get_rank() == 0


def tensors(checkpoint: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and floating-point tensors of what is trained and of its optimizers' state."""
    found = [*checkpoint.get("state_dict", {}).items()]
    for state in checkpoint.get("optimizer_states", []):
        found += [(f"optimizer {key}", value) for entry in state["state"].values() for key, value in entry.items()]
    return ((name, t) for name, t in found if isinstance(t, torch.Tensor) and t.is_floating_point())


def fault(path: Path) -> str | None:
    """What is wrong with a file written by ``torch.save`` (its checksums are verified), ``None`` if nothing is."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        return str(error)
    return f"the checksum of {bad} is wrong" if bad else None


def rename(source: Path, target: Path) -> None:
    """Put a file in another's place, so that a crash leaves one or the other, whole."""
    os.replace(source, target)
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class TrainableCheckpoint(Checkpoint):
    """Writes ``checkpoints/step=N.ckpt`` in the run directory, and ``last.ckpt``, a second name of the newest.

    A checkpoint is written every so many optimizer steps, after the last step, where training ends early, and when
    SIGTERM, SIGUSR1 or SIGINT (Ctrl-C) arrives: then at the end of the optimizer step under way, or at once if that
    step is saved and one process evaluates. The process then ends with status 0; a second Ctrl-C ends it at once. What
    a rule does to the weights after the last step is in ``adapter/`` and not in the checkpoint, so that a run resumed
    from there does it once.

    Args:
        every_n_train_steps: Optimizer steps between two checkpoints.
        keep: How many to keep, the newest; -1 for all. With two, there is one to fall back on.
    """

    def __init__(self, every_n_train_steps: int = 100, keep: int = 2) -> None:
        self.every_n_train_steps = in_range("TrainableCheckpoint.every_n_train_steps", every_n_train_steps, 1)
        self.keep = keep if keep == -1 else in_range("TrainableCheckpoint.keep (-1 for all)", keep, 1)
        self.folder: Path | None = None
        self._stop = self._ends = self._open = False
        self._step = self._saved = self._final = 0

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Find the folder, and have files written and read safely."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        self.folder = (run_directory(trainer) or Path(trainer.default_root_dir)) / FOLDER

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals while the backbone is scored."""
        self._stop = False
        self._listen()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listen for signals; Lightning's own handler would end the run between two micro-batches of a step."""
        self._step = self._saved = trainer.global_step
        self._final = int(min(trainer.estimated_stepping_batches, 2**62))
        self._stop = self._stop or trainer.received_sigterm
        if trainer.is_global_zero:
            self._repair_last()
        self._listen()

    def _listen(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in STOPS:
                signal.signal(number, self._on_signal)
            signal.signal(signal.SIGINT, self._on_interrupt)

    def _repair_last(self) -> None:
        """Name the newest checkpoint again, if the run was killed between writing and naming it."""
        assert self.folder is not None
        last, steps = self.folder / LAST, [path for path in by_age(self.folder) if path.name != LAST]
        if steps and not (last.exists() and last.samefile(steps[0])) and not fault(steps[0]):
            alias(steps[0], last)

    def _on_signal(self, number: int, frame: Any) -> None:
        self._stop = True

    def _on_interrupt(self, number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self._stop = True
        rank_zero_info("Stopping after this step or batch; Ctrl-C again ends the run at once.")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Save if it is time, and leave if it is asked for."""
        step = trainer.global_step
        self._open = step == self._step
        if self._open:
            # Within an accumulation window, whose gradients no checkpoint holds: what ends the run waits for its end.
            self._ends, trainer.should_stop = self._ends or trainer.should_stop, False
            return
        self._step, trainer.should_stop = step, self._ends or trainer.should_stop
        stop = trainer.strategy.reduce_boolean_decision(self._stop, all=False) if trainer.world_size > 1 else self._stop
        if stop or trainer.should_stop or step == self._final or step % self.every_n_train_steps == 0:
            self.save(trainer)
        if stop:
            self._leave(trainer)

    def on_evaluation_batch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Leave an evaluation if nothing would be lost: its answers so far are kept, and so is what was trained."""
        # Several ranks could not agree here: they do not evaluate in step.
        stop = self._stop or trainer.received_sigterm
        if stop and trainer.world_size == 1 and trainer.state.fn == "fit" and self._saved == trainer.global_step:
            self._leave(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what a score has ended, or, within an accumulation window, have it wait for the window's end."""
        if self._open and trainer.state.fn == "fit":
            self._ends, trainer.should_stop = self._ends or trainer.should_stop, False
        self.on_train_epoch_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Save what something else has ended."""
        if trainer.should_stop and trainer.state.fn == "fit" and self._saved != trainer.global_step:
            self.save(trainer)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Note where the run is."""
        behind_a_batch(checkpoint["loops"]["fit_loop"], trainer.current_epoch, trainer.global_step)

    def save(self, trainer: L.Trainer) -> None:
        """Write a checkpoint of this step; every rank has to call this."""
        if getattr(trainer, "fast_dev_run", False):
            return
        assert self.folder is not None
        path = self.folder / f"step={trainer.global_step}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            if path.is_file():  # DeepSpeed writes folders
                alias(path, self.folder / LAST)
            steps = [other for other in by_age(self.folder) if other.name != LAST]
            for old in steps[self.keep :] if self.keep > 0 else []:
                old.unlink() if old.is_file() else shutil.rmtree(old)

    def _leave(self, trainer: L.Trainer) -> None:
        assert self.folder is not None
        if trainer.global_step:
            rank_zero_info(
                f"Stopped by a signal at optimizer step {trainer.global_step}; everything up to it is in "
                f"{self.folder}. Go on with: --version {self.folder.parent.name} --ckpt_path last"
            )
        else:
            rank_zero_info(
                "Stopped by a signal in the evaluation before training. Its answers so far are kept. Go on with: "
                f"--version {self.folder.parent.name} --ckpt_path last"
            )
        raise SIGTERMException


def alias(path: Path, name: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    temporary = name.with_name(name.name + TEMPORARY)
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:
        shutil.copyfile(path, temporary)
    rename(temporary, name)
