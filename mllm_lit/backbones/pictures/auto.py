"""Whether a run gains from keeping a frozen vision encoder's features, and has room for them."""

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import psutil

from mllm_lit.backbones.layout import Role
from mllm_lit.backbones.pictures.cache import VisionCache
from mllm_lit.backbones.pictures.file import VisionCacheError

if TYPE_CHECKING:
    from mllm_lit.backbones.load import LoadedBackbone

SHARE = 0.25
"""Of the memory that is free when training begins, what the features of all ranks of a node may take."""
REPEATED = 0.1
"""Least share of a run's looks at pictures that are not the first at theirs; below, looking up is not worth it."""


class Looks(NamedTuple):
    """How often one rank looks at pictures in a run.

    Attributes:
        pictures: That it looks at.
        looks: At all of them.
    """

    pictures: float
    looks: float

    @property
    def pays(self) -> bool:
        """Whether enough of them are seen again."""
        return self.looks > 0 and 1 - self.pictures / self.looks >= REPEATED


def looks_at(
    rows: Iterable[Any], epochs: float, evaluated: Iterable[tuple[Iterable[Any], int]] = (), ranks: int = 1
) -> Looks:
    """Count them: a training row's pictures once an epoch, a set's pictures once an evaluation.

    Ranks look at parts of the training rows, other ones in each epoch, and at the same part of a set each time.

    Args:
        rows: Samples that are trained on.
        epochs: How often; may be part of one.
        evaluated: Samples, and how often they are evaluated.
        ranks: Processes that share the rows.

    >>> from types import SimpleNamespace as Row
    >>> looks_at([Row(images=("a",)), Row(images=("b",)), Row(images=())], epochs=3)
    Looks(pictures=2.0, looks=6.0)
    """
    shown = [image for row in rows for image in row.images]
    different, looks = len(set(shown)), epochs * len(shown) / ranks
    chance = 1 - (1 - 1 / ranks) ** (epochs * len(shown) / different) if different else 0.0
    pictures = min(different * chance, looks)
    scored: set[Any] = set()
    for samples, times in evaluated:
        if times:
            found = {image for sample in samples for image in sample.images}
            scored |= found
            looks += times * len(found) / ranks
    return Looks(pictures + len(scored) / ranks, looks)


def cache_if_it_pays(
    loaded: "LoadedBackbone",
    trained: Iterable[Role],
    seen: Looks,
    probe: Callable[[], bool],
    ranks: int = 1,
    folder: Path | None = None,
) -> tuple[VisionCache | None, str]:
    """A cache in front of the vision encoder, or none, and why.

    Args:
        loaded: The backbone, on its device.
        trained: Roles in which something is trained.
        seen: What this rank looks at.
        probe: Runs the model on some of the pictures; whether they look the same each time.
        ranks: Of this node, which share its memory.
        folder: Where other runs find them, too; ``None`` keeps them in memory.
    """
    off = "Vision features are computed each time (vision_cache: auto): "
    if "vision" in set(trained):
        return None, f"{off}the vision encoder is trained."
    if not seen.pays and folder is None:
        return (
            None,
            f"{off}{seen.looks:,.0f} looks at {seen.pictures:,.0f} pictures are to come, too few to gain by it.",
        )
    room = SHARE * min(free_memory(), free_disk(folder)) / ranks
    cache = VisionCache(room / 1e9, folder)
    try:
        cache.attach(loaded, ())
        unchanged = probe()
    except VisionCacheError as error:
        cache.release()
        return None, off + str(error).removeprefix("vision_cache: ").partition(" Set vision_cache")[0]
    if not unchanged:
        cache.release()
        return None, f"{off}training pictures are augmented, so none is seen twice."
    needed = cache.bytes_a_picture() * seen.pictures
    if needed > room or not cache.bytes:
        cache.release()
        return None, f"{off}those of {seen.pictures:,.0f} pictures do not fit into {room / 1e9:,.2f} GB."
    return cache, (
        f"Vision features are kept (vision_cache: auto): {seen.pictures:,.0f} pictures in about {needed / 1e6:,.1f} MB "
        f"for {seen.looks:,.0f} looks{'' if folder is None else f', in {folder}'}."
    )


def free_disk(folder: Path | None) -> float:
    """Bytes that are free where a folder is or will be; without one nothing is written, so there is no end to them."""
    if folder is None:
        return float("inf")
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def free_memory() -> int:
    """Bytes that this process could still take, by the system's count and by that of its control group."""
    free: int = psutil.virtual_memory().available
    try:
        path = Path("/proc/self/cgroup").read_text(encoding="ascii").strip().rpartition(":")[2]
    except OSError:
        return free
    group = Path("/sys/fs/cgroup") / path.lstrip("/")
    for folder in (group, *group.parents):
        try:
            limit, used = ((folder / name).read_text(encoding="ascii") for name in ("memory.max", "memory.current"))
            free = min(free, max(0, int(limit) - int(used)))
        except (OSError, ValueError):
            continue  # "max" is no limit
    return free
