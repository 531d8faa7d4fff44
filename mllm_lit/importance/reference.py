"""θ0: the weights before fine-tuning, kept once for every rule and merge."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Self

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from mllm_lit.errors import SettingError
from mllm_lit.tensors import chunks, fingerprint, local, shard_like

_NARROW = (torch.bfloat16, torch.float16)


class Reference(Mapping[str, Tensor]):
    """θ0 by parameter name, with an identity that tells one base from another.

    Tensors are this rank's shards, in the narrowest dtype that holds them exactly: weights that came from a bf16
    checkpoint take 2 bytes per entry, however wide the parameter that is trained from them.

    Args:
        tensors: This rank's part of θ0, by name.
        identity: From :func:`fingerprint`.
    """

    def __init__(self, tensors: Mapping[str, Tensor], identity: str) -> None:
        self._tensors = dict(tensors)
        self.identity = identity

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    @classmethod
    def capture(
        cls,
        parameters: Mapping[str, Tensor],
        values: Mapping[str, Tensor] | None = None,
        on: str = "device",
    ) -> Self:
        """Keep θ0 of ``parameters``.

        Args:
            parameters: The trainable tensors, by name (DTensors are kept as their local shards).
            values: θ0 by name, whole or as local shards, when it is not what the parameters hold now.
            on: ``device`` (beside the parameter), ``host`` (pinned where there is a GPU: no memory on the device),
                or the path of a safetensors file, written now and memory-mapped afterwards (no memory of its own
                anywhere). Of several processes each has a file of its own, ``NAME.rank0.safetensors`` and so on.

        Raises:
            KeyError: ``values`` lacks a parameter.
            ValueError: ``values`` holds another shape under a parameter's name.
            FileNotFoundError: The folder of the path does not exist.
        """
        kept: dict[str, Tensor] = {}
        whole: dict[str, Tensor] = {}
        for name, parameter in parameters.items():
            mine = local(parameter)
            if values is not None:
                mine = _given(name, parameter, values).to(mine.device)
            whole[name] = mine
            kept[name] = _place(_narrow(mine), mine, on)
        identity = fingerprint(parameters, whole)
        if on not in ("device", "host"):
            kept = _mapped(kept, Path(on), identity)
        return cls(kept, identity)

    def beside(self, parameters: Mapping[str, Tensor], on: str) -> Self:
        """The same where ``on`` says, now that the parameters are on their device (a resumed run captures θ0 before).

        Args:
            parameters: The trainable tensors, by name.
            on: See :meth:`capture`; a file stays as it is.
        """
        if on in ("device", "host"):
            for name in self.keys() & parameters.keys():
                mine = local(parameters[name])
                if on == "device":
                    self._tensors[name] = self._tensors[name].to(mine.device)
                elif mine.device.type == "cuda" and not self._tensors[name].is_pinned():
                    self._tensors[name] = self._tensors[name].pin_memory()
        return self


def _given(name: str, parameter: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    if name not in values:
        raise KeyError(
            f"The reference weights have no tensor {name!r}. Give θ0 for every trainable tensor under its parameter's "
            "name; for tensors that an adapter created, that is what they held right after it was attached."
        )
    value = local(values[name])
    if value.shape == parameter.shape:
        value = shard_like(value, parameter)
    if value.shape != local(parameter).shape:
        raise SettingError(
            f"The reference of {name!r} has shape {tuple(value.shape)}, the parameter {tuple(parameter.shape)}; "
            "were these weights saved from another model?"
        )
    return value


def _narrow(tensor: Tensor) -> Tensor:
    if tensor.dtype == torch.float32:
        for dtype in _NARROW:
            if all(bool((part.to(dtype).to(tensor.dtype) == part).all()) for (part,) in chunks(tensor)):
                return tensor.to(dtype)
    return tensor


def _mapped(tensors: Mapping[str, Tensor], path: Path, identity: str) -> dict[str, Tensor]:
    """The tensors as views of a new file, one for each process: shards differ, and nodes may share no disk."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"θ0 is to be written to {path}, but {path.parent} is no folder; create it.")
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        path = path.with_name(f"{path.stem}.rank{dist.get_rank()}{path.suffix}")
    # Replaces a file of this name, which another run may still map, and does not write into it.
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"identity": identity})
    return load_file(path)


def _place(tensor: Tensor, original: Tensor, on: str) -> Tensor:
    if on == "device":
        return tensor.clone() if tensor.data_ptr() == original.data_ptr() else tensor
    tensor = tensor.to("cpu", copy=tensor.data_ptr() == original.data_ptr())
    return tensor.pin_memory() if on == "host" and original.device.type == "cuda" else tensor
