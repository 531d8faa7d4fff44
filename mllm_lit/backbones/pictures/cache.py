"""A frozen vision encoder sees each picture once; what it made of it is kept, ahead of the connector."""

import hashlib
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mllm_lit.backbones.layout import Role
from mllm_lit.backbones.pictures.file import FeatureFile, Key, Slots, VisionCacheError, aligned
from mllm_lit.backbones.pictures.shared import first_places, in_front
from mllm_lit.errors import in_range

if TYPE_CHECKING:
    from mllm_lit.backbones.load import LoadedBackbone


class VisionCache:
    """Keeps a frozen vision encoder's features, in the dtype it computes in (bf16 where its weights are bf16).

    A picture is known by the pixels that the encoder gets, so the image processor is part of its key, and a picture
    that changes is never confused. Nothing is evicted: once the limit is reached, further pictures are encoded anew.

    Args:
        gigabytes: Most that is kept, per process.
        folder: Keep it in a memory-mapped file in this folder, which later runs on the same backbone go on using (runs
            at the same time have a file each); ``None`` keeps it in memory.

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
        self._full = self._probed = self._alone = False

    def bytes_a_picture(self) -> float:
        """Mean size of what is kept of one, 0 if nothing is."""
        return self.bytes / max(1, len(self._kept))

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
        tower = loaded.model.get_submodule(layout.vision[0])
        if any(hasattr(parameter, "placements") for parameter in tower.parameters()):
            raise VisionCacheError(
                "vision_cache: the vision encoder is sharded, and ranks that skip it would leave the others waiting. "
                "Set vision_cache: null, or train with DDP."
            )
        self._tower, self._identity = tower, loaded.identity
        self._give_back = in_front(tower, "forward", self._cached)
        return True

    def detach(self, why: str) -> None:
        """Give the encoder back and drop everything; ``why`` goes into the message."""
        if self.release():
            self._say(f"{why} The cache is off.")

    def release(self) -> bool:
        """As :meth:`detach`, without a word; whether there was anything to give back."""
        if self._tower is None:
            return False
        self._give_back()
        self._tower, self._kept, self._file, self.bytes = None, {}, None, 0
        return True

    def _cached(self, forward: Any, *args: Any, **kwargs: Any) -> Any:
        pixels, *_ = [*args, *kwargs.values()]
        keys = picture_keys([*enumerate(args), *sorted(kwargs.items())], pixels)
        self.looked_up += len(keys)
        # Several threads split a product by its rows, so a picture's rounding would depend on the batch that it first
        # came in, and a resumed run would differ in the last bits.
        self._alone = pixels.device.type == "cpu" and torch.get_num_threads() > 1
        if self.folder is not None and self._file is None:
            self._open(self.folder, pixels)
        fresh = {key: place for key, place in first_places(keys).items() if key not in self._kept}

        def encode(places: list[int]) -> list[Tensor]:
            def only(value: Any) -> Any:
                return value[places] if isinstance(value, Tensor) and len(value) == len(keys) else value

            output = forward(*map(only, args), **{name: only(value) for name, value in kwargs.items()})
            parts, self._slots = parts_of(output)
            return parts

        made = dict(zip(fresh, self._made(encode, list(fresh.values())), strict=True)) if fresh else {}
        self._keep(made)
        rows = zip(*[made.get(key) or self._kept[key] for key in keys], strict=True)
        # Rows made just now are on the device already, kept ones are not.
        tensors = [torch.stack([part.to(pixels.device, non_blocking=True) for part in row]) for row in rows]
        return output_of(tensors, self._slots)

    def _made(self, encode: Callable[[list[int]], list[Tensor]], places: list[int]) -> list[list[Tensor]]:
        """What the encoder makes of some pictures of a batch, by picture."""
        if self._alone:
            parts = [torch.cat(part) for part in zip(*(encode([place]) for place in places), strict=True)]
        else:
            parts = encode(places)
        self.encoded += len(places)
        if not parts or any(len(part) != len(places) for part in parts):
            shapes = [tuple(part.shape) for part in parts]
            raise VisionCacheError(
                f"vision_cache: {type(self._tower).__name__} made {shapes} of {len(places)} pictures, which cannot be "
                "told apart by picture. Set vision_cache: null."
            )
        if len(places) > 1 and not self._probed and not self._alone:
            self._probed = True
            alone = encode(places[:1])
            gap = max(float((one[0] - part[0]).abs().max()) for one, part in zip(alone, parts, strict=True))
            if gap > 0:  # as some kernels' rounding has it
                self._say(
                    f"on this device a picture's features depend on how many are encoded at once (by up to {gap:.1g}), "
                    "so losses equal those without the cache up to rounding, not bit for bit."
                )
        return [[part[i] for part in parts] for i in range(len(places))]

    @torch.inference_mode(False)  # Features made while evaluating serve in training, where inference tensors may not.
    def _keep(self, made: Mapping[Key, list[Tensor]]) -> None:
        for key, row in made.items():
            size = sum(aligned(part.nbytes) for part in row)
            if self.bytes + size > self.limit:
                if not self._full:
                    self._say(
                        f"{self.limit / 1e9:g} GB are full with {len(self._kept):,} pictures; the others are encoded "
                        "each time. Raise vision_cache.gigabytes."
                    )
                self._full = True
                return
            kept = [part.detach().to("cpu", copy=True) for part in row]
            self._kept[key] = kept if self._file is None else self._file.append(key, kept, self._slots)
            self.bytes += size

    def _open(self, folder: Path, pixels: Tensor) -> None:
        assert self._tower is not None
        config: Any = self._tower.config
        weight = next(self._tower.parameters())
        file = getattr(sys.modules.get(type(self._tower).__module__), "__file__", None)  # a notebook has none
        code = "" if file is None else hashlib.sha256(Path(file).read_bytes()).hexdigest()
        versions = torch.__version__, version("transformers"), code
        threads = torch.get_num_threads() if pixels.device.type == "cpu" else 0  # by which a CPU's rounding differs
        told = [self._identity, weight.dtype, config._attn_implementation, versions, pixels.device.type, threads]
        name = hashlib.sha256(repr(told).encode()).hexdigest()[:16]
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        self._file = FeatureFile(folder / f"{name}-{rank}", self.limit)
        self._kept, self.bytes = self._file.rows, self._file.used
        if self._file.slots is not None:
            self._slots = self._file.slots

    def _say(self, text: str) -> None:
        warnings.warn(f"vision_cache: {text}", stacklevel=2)


def parts_of(output: Any) -> tuple[list[Tensor], Slots]:
    """The tensors that a model reads from its vision encoder, each once, and where they belong.

    Where hidden states short of the last are selected, the last one is not read.
    """
    layers = output.hidden_states
    last = None if layers is not None and layers[-1] is None else output.last_hidden_state
    tensors = {id(tensor): tensor for tensor in (last, *(layers or ())) if tensor is not None}
    slots = {known: i for i, known in enumerate(tensors)}
    deep = None if layers is None else tuple(slots.get(id(layer)) for layer in layers)
    return list(tensors.values()), (slots.get(id(last)), deep)


def output_of(tensors: list[Tensor], slots: Slots) -> Any:
    """A vision encoder's output; the reverse of :func:`parts_of`."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    make: Any = BaseModelOutputWithPooling
    last, layers = slots
    return make(
        last_hidden_state=None if last is None else tensors[last],
        hidden_states=None if layers is None else tuple(None if i is None else tensors[i] for i in layers),
    )


def picture_keys(given: Sequence[tuple[int | str, Any]], pixels: Tensor) -> list[Key]:
    """A digest per picture of everything the encoder gets with it: pixels, masks, settings."""
    settings = hashlib.sha256()
    split: list[Tensor] = []
    for name, value in given:
        if not isinstance(value, Tensor):
            settings.update(f"{name}={value!r}".encode())
            continue
        settings.update(f"{name}{tuple(value.shape[1:])}{value.dtype}".encode())
        data = value.detach().contiguous().cpu()
        if len(value) == len(pixels):
            split.append(data.view(len(pixels), -1).view(torch.uint8))
        else:
            settings.update(data.flatten().view(torch.uint8).numpy().data)
    device = pixels.device.type
    if torch.is_autocast_enabled(device):
        settings.update(str(torch.get_autocast_dtype(device)).encode())
    keys = [settings.copy() for _ in pixels]
    for i, digest in enumerate(keys):
        for value in split:
            digest.update(value[i].numpy().data)
    return [digest.digest() for digest in keys]
