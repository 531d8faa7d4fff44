"""A frozen vision encoder sees each picture once; what it made of it is kept, ahead of the connector."""

import ast
import hashlib
import mmap
import os
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.layout import Role
from mllm_lit.errors import UserError, in_range

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mllm_lit.backbones.load import LoadedBackbone

Key = bytes
ALIGN = 64
"""Tensors of a file begin at multiples of so many bytes."""
STEP = 1 << 26
"""Bytes of a file that are reserved at once."""


class VisionCacheError(UserError, RuntimeError):
    """The features of this backbone cannot be kept; the message says why."""


class VisionCache:
    """Keeps a frozen vision encoder's features, in the dtype it computes in (bf16 where its weights are bf16).

    A picture is known by the pixels that the encoder gets, so the image processor is part of its key, and a picture
    that changes is never confused. Nothing is evicted: once the limit is reached, further pictures are encoded anew.

    Args:
        gigabytes: Most that is kept, per process.
        folder: Keep it in a memory-mapped file in this folder, which later runs on the same backbone go on using;
            ``None`` keeps it in memory.

    Attributes:
        encoded: Pictures that went through the encoder.
        looked_up: Pictures that were asked for.
        bytes: Size of what is kept.
    """

    def __init__(self, gigabytes: float = 4.0, folder: Path | str | None = None) -> None:
        self.limit = int(in_range("vision_cache.gigabytes", gigabytes, above=0) * 1e9)
        self.folder = None if folder is None else Path(folder).expanduser()
        self.encoded = self.looked_up = self.bytes = 0
        self._kept: dict[Key, list[Tensor]] = {}
        self._file: FeatureFile | None = None
        self._tower: nn.Module | None = None
        self._full = self._probed = False

    def attach(self, loaded: "LoadedBackbone", trained: Iterable[Role]) -> bool:
        """Stand in front of the vision encoder, unless it is trained.

        Args:
            loaded: The backbone.
            trained: Roles in which something is trained.

        Returns:
            Whether the cache is in use.

        Raises:
            VisionCacheError: The encoder cannot be told from the connector, or is in several parts.
        """
        if "vision" in trained:
            self._say("the vision encoder is trained, so its features change. The cache is off.")
            return False
        layout, name = loaded.layout, type(loaded.model).__name__
        inside = [path for path in layout.connector if path.startswith(tuple(f"{v}." for v in layout.vision))]
        if inside or len(layout.vision) != 1:
            why = f"its connector is inside the vision module ({inside[0]})" if inside else f"it has {layout.vision}"
            raise VisionCacheError(
                f"vision_cache needs one vision encoder ahead of the connector; in {name} {why}. "
                "Set vision_cache: null."
            )
        self._tower = tower = loaded.model.get_submodule(layout.vision[0])
        if any(hasattr(parameter, "placements") for parameter in tower.parameters()):
            raise VisionCacheError(
                "vision_cache: the vision encoder is sharded, and ranks that skip it would leave the others waiting. "
                "Set vision_cache: null, or train with DDP."
            )
        self._identity, self._forward = loaded.identity, tower.forward
        tower.forward = self._cached
        return True

    def detach(self, why: str) -> None:
        """Give the encoder back and drop everything.

        Args:
            why: The reason, for the message.
        """
        if self._tower is not None:
            # What stood in front of the class's own method was an attribute of the instance.
            del self._tower.forward
            self._tower, self._kept, self._file, self.bytes = None, {}, None, 0
            self._say(f"{why} The cache is off.")

    def _cached(self, *args: Any, **kwargs: Any) -> Any:
        given = list(args) + list(kwargs.values())
        rows = len(given[0])
        keys = row_keys(args, kwargs, rows)
        self.looked_up += rows
        if self.folder is not None and self._file is None:
            self._open(given[0])
        fresh = [i for i, key in enumerate(keys) if key not in self._kept and key not in keys[:i]]
        if len(fresh) == rows:
            output, parts = self._encode(args, kwargs, rows)
            self._probe(args, kwargs, parts)
            self._keep(keys, parts)
            return output
        made: dict[Key, list[Tensor]] = {}
        if fresh:
            pick = [_rows(value, fresh, rows) for value in args]
            named = {name: _rows(value, fresh, rows) for name, value in kwargs.items()}
            _, parts = self._encode(pick, named, len(fresh))
            made = {keys[row]: [part[i] for part in parts] for i, row in enumerate(fresh)}
            self._keep([keys[row] for row in fresh], parts)
        return self._assemble([made.get(key) or self._kept[key] for key in keys], given[0].device)

    def _encode(self, args: Any, kwargs: dict[str, Any], rows: int) -> "tuple[Any, list[Tensor]]":
        output = self._forward(*args, **kwargs)
        self.encoded += rows
        parts, self._slots = outputs_of(output)
        if not parts or any(len(part) != rows for part in parts):
            shapes = [tuple(part.shape) for part in parts]
            raise VisionCacheError(
                f"vision_cache: {type(self._tower).__name__} made {shapes} of {rows} pictures, which cannot be told "
                "apart by picture. Set vision_cache: null."
            )
        return output, parts

    def _probe(self, args: Any, kwargs: dict[str, Any], parts: "list[Tensor]") -> None:
        """Say, once, if a picture's features depend on the others in its batch, as some kernels' rounding does."""
        rows = len(parts[0])
        if self._probed or rows < 2:
            return
        self._probed = True
        alone = [_rows(value, [0], rows) for value in args], {n: _rows(v, [0], rows) for n, v in kwargs.items()}
        parts_alone, _ = outputs_of(self._forward(*alone[0], **alone[1]))
        gap = max(float((one[0] - part[0]).abs().max()) for one, part in zip(parts_alone, parts, strict=True))
        if gap > 0:
            self._say(
                f"on this device a picture's features depend on how many are encoded at once (by up to {gap:.1g}), so "
                "losses equal those without the cache up to rounding, not bit for bit."
            )

    def _keep(self, keys: list[Key], parts: "list[Tensor]") -> None:
        import torch

        # Features made while evaluating have to serve in training, where inference tensors are refused.
        with torch.inference_mode(False):
            for i, key in enumerate(keys):
                row = [part[i].detach() for part in parts]
                size = sum(aligned(part.numel() * part.element_size()) for part in row)
                if self.bytes + size > self.limit:
                    if not self._full:
                        self._say(
                            f"{self.limit / 1e9:g} GB are full with {len(self._kept):,} pictures; the others are "
                            "encoded each time. Raise vision_cache.gigabytes."
                        )
                    self._full = True
                    return
                kept = [part.to("cpu", copy=True) for part in row]
                self._kept[key] = kept if self._file is None else self._file.append(key, kept, self._slots)
                self.bytes += size

    def _assemble(self, found: "list[list[Tensor]]", device: "torch.device") -> Any:
        import torch
        from transformers.modeling_outputs import BaseModelOutputWithPooling

        def stacked(slot: int) -> "Tensor":
            # Rows made just now are on the device already, kept ones are not.
            return torch.stack([row[slot].to(device, non_blocking=True) for row in found])

        tensors = [stacked(slot) for slot in range(len(found[0]))]
        last, layers = self._slots
        make: Any = BaseModelOutputWithPooling
        return make(
            last_hidden_state=None if last is None else tensors[last],
            hidden_states=None if layers is None else tuple(None if i is None else tensors[i] for i in layers),
        )

    def _open(self, pixels: "Tensor") -> None:
        import torch

        assert self.folder is not None
        assert self._tower is not None
        config: Any = self._tower.config
        weight = next(self._tower.parameters())
        told = [self._identity, weight.dtype, config._attn_implementation, torch.__version__, pixels.device.type]
        name = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self._file = FeatureFile(self.folder / f"{name}-{rank}", self.limit)
        self._kept, self.bytes = self._file.rows, self._file.used
        if self._file.slots is not None:
            self._slots = self._file.slots

    def _say(self, text: str) -> None:
        warnings.warn(f"vision_cache: {text}", stacklevel=2)


Slots = tuple[int | None, tuple[int | None, ...] | None]
"""Where in a list of tensors the last hidden state is, and each hidden state; ``None`` for what was not asked for."""


def outputs_of(output: Any) -> "tuple[list[Tensor], Slots]":
    """The tensors that a model reads from its vision encoder, each once, and where they belong.

    Where hidden states short of the last are selected, the last one is not read.
    """
    layers = output.hidden_states
    last = None if layers is not None and layers[-1] is None else output.last_hidden_state
    tensors: list[Tensor] = []

    def slot(tensor: "Tensor | None") -> int | None:
        if tensor is None:
            return None
        for i, known in enumerate(tensors):
            if known is tensor:
                return i
        tensors.append(tensor)
        return len(tensors) - 1

    return tensors, (slot(last), None if layers is None else tuple(slot(layer) for layer in layers))


def aligned(size: int) -> int:
    """The next multiple of :data:`ALIGN`."""
    return -(-size // ALIGN) * ALIGN


def row_keys(args: Any, kwargs: dict[str, Any], rows: int) -> list[Key]:
    """A digest per picture of everything the encoder gets with it: pixels, masks, settings."""
    import torch

    settings = hashlib.sha256()
    split: list[Tensor] = []
    for name, value in [*enumerate(args), *sorted(kwargs.items())]:
        if isinstance(value, torch.Tensor):
            settings.update(f"{name}{tuple(value.shape[1:])}{value.dtype}".encode())
            if len(value) == rows:
                split.append(value.detach().contiguous().cpu().view(rows, -1).view(torch.uint8))
            else:
                settings.update(value.detach().contiguous().cpu().flatten().view(torch.uint8).numpy().data)
        else:
            settings.update(f"{name}={value!r}".encode())
    device = args[0].device.type if args else next(iter(kwargs.values())).device.type
    if torch.is_autocast_enabled(device):
        settings.update(str(torch.get_autocast_dtype(device)).encode())
    keys = []
    for i in range(rows):
        digest = settings.copy()
        for value in split:
            digest.update(value[i].numpy().data)
        keys.append(digest.digest())
    return keys


def _rows(value: Any, wanted: list[int], rows: int) -> Any:
    import torch

    return value[wanted] if isinstance(value, torch.Tensor) and len(value) == rows else value


class FeatureFile:
    """Rows of tensors in one memory-mapped file, with an index of lines beside it that is written after each row.

    Args:
        path: Without extension; ``.bin`` and ``.txt`` are added.
        limit: Bytes at most.

    Raises:
        VisionCacheError: Another process has it open, or, later, the disk is full.
    """

    def __init__(self, path: Path, limit: int) -> None:
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        self.rows: dict[Key, list[Tensor]] = {}
        self.used = 0
        self.slots: Slots | None = None
        self._index = path.with_suffix(".txt").open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise VisionCacheError(
                f"vision_cache: another run has {path}.txt open. Give each run that is going on its own folder."
            ) from error
        # Not for appending: where a file system cannot reserve, the C library writes at places of its own.
        self._file = os.fdopen(os.open(path.with_suffix(".bin"), os.O_RDWR | os.O_CREAT), "r+b")
        self._path = path.with_suffix(".bin")
        # Sparse: blocks are taken in steps, ahead of the rows.
        size = max(limit, self._file.seek(0, os.SEEK_END))
        self._file.truncate(size)
        self._map = mmap.mmap(self._file.fileno(), size)
        self._reserved = 0
        self._index.seek(0)
        for line in self._index:
            self._read(line)

    def _read(self, line: str) -> None:
        if not line.endswith("\n"):
            return  # Cut short by a kill; its row is written anew.
        key, offset, shapes, slots = line.rstrip("\n").split("\t")
        self.slots = ast.literal_eval(slots)
        rows, self.used = self._views(int(offset), ast.literal_eval(shapes))
        self.rows[bytes.fromhex(key)] = rows

    def _views(self, offset: int, shapes: list[tuple[str, tuple[int, ...]]]) -> "tuple[list[Tensor], int]":
        import torch

        views = []
        for name, shape in shapes:
            dtype: torch.dtype = getattr(torch, name)
            count = int(torch.Size(shape).numel())
            views.append(torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset).view(shape))
            offset += aligned(count * dtype.itemsize)
        return views, offset

    def append(self, key: Key, tensors: "list[Tensor]", slots: Slots) -> "list[Tensor]":
        """Write a row and return it as it lies in the file."""
        shapes = [(str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape)) for tensor in tensors]
        offset = self.used
        self._reserve(offset + sum(aligned(tensor.nbytes) for tensor in tensors))
        views, self.used = self._views(offset, shapes)
        for view, tensor in zip(views, tensors, strict=True):
            view.copy_(tensor)
        try:
            self._index.write(f"{key.hex()}\t{offset}\t{shapes}\t{slots}\n")
            self._index.flush()
        except OSError as error:
            raise self._full(error) from error
        return views

    def _reserve(self, end: int) -> None:
        """Have the disk give the blocks up to ``end``: a mapped page without one ends the process by a signal."""
        if end <= self._reserved:
            return
        for step in (STEP, 0):  # less where a whole step does not fit any more
            wanted = min(max(end, self._reserved + step), len(self._map))
            try:
                os.posix_fallocate(self._file.fileno(), self._reserved, wanted - self._reserved)
            except OSError as error:
                refused = error
            else:
                self._reserved = wanted
                return
        raise self._full(refused) from refused

    def _full(self, error: OSError) -> VisionCacheError:
        return VisionCacheError(
            f"vision_cache: {self._path} cannot grow beyond {self._reserved:,} bytes: {error.strerror}. What is in it "
            "stays usable. Free some space, lower vision_cache.gigabytes, choose another folder, or leave folder out "
            "to keep the features in memory."
        )
