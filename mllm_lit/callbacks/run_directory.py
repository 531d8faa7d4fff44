"""Which folder a run writes to, and where it resumes."""

from pathlib import Path

from mllm_lit.callbacks.checkpoint import FOLDER, CheckpointError, by_age

CONFIG = "config.yaml"


class RunDirectoryError(ValueError):
    """The run directory that was asked for is taken."""


def find_last(experiment: Path, version: str | None) -> tuple[str | None, Path | None]:
    """What ``--ckpt_path last`` means.

    Args:
        experiment: The folder that holds an experiment's run directories.
        version: Name of one of them; ``None`` for the one that was started last.

    Returns:
        The run directory's name, ``None`` if there is none yet, and its newest checkpoint, ``None`` likewise.
    """
    if version is None:
        runs = sorted(experiment.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime_ns)
        version = runs[-1].parent.name if runs else None
    if version is None:
        return None, None
    return version, next(iter(by_age(experiment / version / FOLDER)), None)


def require_checkpoint(found: Path | None, experiment: Path, version: str | None) -> Path:
    """The checkpoint that ``last`` has found.

    Raises:
        CheckpointError: It found none.
    """
    if found is None:
        where = experiment / (version or "*") / FOLDER
        raise CheckpointError(f"--ckpt_path last: there is no checkpoint in {where}. Give the path of one.")
    return found


def refuse_existing(folder: Path, version: str | None, checkpoint: Path | None = None) -> None:
    """Raise if a run directory that was asked for by name holds something, unless ``checkpoint`` lies in it."""
    if version is None or not (path := folder / version).is_dir() or not any(path.iterdir()):
        return
    if checkpoint is None or path.resolve() not in checkpoint.resolve().parents:
        raise RunDirectoryError(
            f"The run directory {str(path)!r} exists and is not empty; nothing is overwritten. Go on with it by "
            "--ckpt_path last, choose another --version or --experiment, leave --version out for the next free "
            "number, or remove it."
        )
