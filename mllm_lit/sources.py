"""Sets that are scored beside the target, and where a task is read from."""

from pathlib import Path

from mllm_lit.data.faults import DatasetError
from mllm_lit.errors import in_range
from mllm_lit.tasks import EMBEDDED, embedded_root
from mllm_lit.tasks.base import Task
from mllm_lit.tasks.places import hub_id


class Source:
    """A dataset beside the target, whose score before and after fine-tuning tells what was forgotten.

    Args:
        task: How it is read, asked and scored.
        root: Folder of the official release; ``None`` takes the data embedded in the package.
        split: The split that is scored, as its publisher names it; ``None`` takes the task's test split.
        max_samples: Score a random subset of this many rows, drawn with the run's seed; ``None`` for all.
    """

    def __init__(
        self, task: Task, root: Path | str | None = None, split: str | None = None, max_samples: int | None = None
    ) -> None:
        self.task, self._root = task, root
        self.max_samples = in_range(f"max_samples of the source {task.name}", max_samples, 1)
        self.split = split or task.split_names["test"]

    @property
    def root(self) -> Path:
        """Where the set is read from; refused here, when it is first read, if it does not exist."""
        return resolve_root(self.task, self._root)

    @property
    def embedded(self) -> bool:
        """Whether it is the small set that comes with the package."""
        return is_embedded(self.task, self._root)

    @property
    def kept(self) -> Path | None:
        """Where sizes of its pictures are kept; what is embedded in the package is measured anew."""
        return None if self._root is None else kept_beside(self.root)


class Sources:
    """The held-out sources of a run, or its other sets, by name.

    Args:
        sets: Name to set, in the order in which they are reported.
    """

    def __init__(self, sets: dict[str, Source]) -> None:
        self.sets = sets


def is_embedded(task: Task, root: Path | str | None) -> bool:
    """Whether a task is read from the small set that comes with the package."""
    return root is None and task.name in EMBEDDED


def resolve_root(task: Task, root: Path | str | None) -> Path:
    """Where to read a task from; a missing folder is refused with the layout expected there."""
    if is_embedded(task, root):
        return embedded_root(task.name)
    if not task.has_root:
        if root is not None:
            raise DatasetError(f"{task.name}: its own file says where its data are; leave out the root ({root}).")
        return Path()
    path = None if root is None else Path(root).expanduser()
    if task.takes_files and path is not None and (path.is_file() or hub_id(path) is not None):
        return path
    if path is None or not path.is_dir():
        kind = "file or folder" if task.takes_files else "folder"
        tried = "no root is set" if path is None else f"there is no {kind} {str(path)!r} (tried {path.absolute()})"
        raise DatasetError(
            f"{task.name}: {tried}. Expected in it:\n{task.expected_tree}\nPublished at {task.published_at}. Set "
            "data.root (or the source's root) to where it was unpacked; without a root, the data embedded in the "
            f"package is read, which there is for {', '.join(EMBEDDED)}."
        )
    return path


def kept_beside(root: Path) -> Path | None:
    """The folder beside a task's files, in which sizes of its pictures are kept; ``None`` for the hub's."""
    return root.parent if root.is_file() else root if root.is_dir() else None
