"""The local part of a tensor, and sums over the parts that other ranks hold.

Under FSDP2 a parameter is a :class:`~torch.distributed.tensor.DTensor`. Rules do their arithmetic on the local
shard; what concerns a whole tensor (a mean, a count) is a row of numbers, summed over the shards in one packed
all-reduce. No parameter, gradient or mask is ever gathered.
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard

from mllm_lit.errors import SettingError

CHUNK = {"cpu": 1 << 18}
"""Entries handled at a time. On a CPU the temporaries of one chunk stay in the cache, so an eager chain of
elementwise operations costs one trip to memory, not thirty."""
DEFAULT_CHUNK = 1 << 22
_MIX = (0x2545F4914F6CDD1D, 0x369DEA0F31A53F85)  # odd 63-bit multipliers, which make the sum below depend on every bit


def count_of(parameter: Tensor) -> int:
    """How many numbers a parameter stands for: of 4-bit weights of bitsandbytes, a byte holds two.

    >>> count_of(torch.zeros(2, 3))
    6
    """
    packed = getattr(parameter, "quant_state", None)
    return parameter.numel() if packed is None else int(packed.shape.numel())


def local(tensor: Tensor) -> Tensor:
    """The part of ``tensor`` that this rank holds, as a detached alias to read or write."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views over the same entries of equally shaped tensors, about one chunk each; none if they are empty.

    Contiguous tensors come flat: whatever the shapes of a model, compiled code sees vectors. Others come by rows.
    """
    first = tensors[0]
    if first.numel() == 0:
        return iter(())
    limit = rows = CHUNK.get(first.device.type, DEFAULT_CHUNK)
    if all(tensor.is_contiguous() for tensor in tensors):
        tensors = tuple(tensor.view(-1) for tensor in tensors)
    else:
        rows = max(1, limit * len(first) // first.numel())
    return zip(*(torch.split(tensor, rows) for tensor in tensors), strict=True)


def shard_like(full: Tensor, like: Tensor) -> Tensor:
    """The part of an unsharded tensor that this rank holds when it is sharded as ``like`` is (no communication)."""
    if not isinstance(like, DTensor):
        return full
    for mesh_dim, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            parts = full.chunk(like.device_mesh.size(mesh_dim), placement.dim)
            index = like.device_mesh.get_local_rank(mesh_dim)
            full = parts[index] if index < len(parts) else full.narrow(placement.dim, 0, 0)
    return full


def sharded_dims(tensor: Tensor) -> tuple[DeviceMesh, tuple[int, ...]] | None:
    """The mesh and those of its dimensions over which ``tensor`` is split, or ``None`` when every rank holds all of it.

    Raises:
        ValueError: The placement is neither ``Shard`` nor ``Replicate`` (strided shards of FSDP2 over tensor
            parallelism, partial sums), whose rows cannot be told apart from here.
    """
    if not isinstance(tensor, DTensor):
        return None
    for placement in tensor.placements:
        if type(placement) not in (Shard, Replicate):
            raise SettingError(
                f"A parameter is placed as {tuple(tensor.placements)}; importance rules know Shard and Replicate. "
                "Shard it over one mesh dimension only (FSDP2 or HSDP, without tensor parallelism on the same tensor)."
            )
    dims = tuple(dim for dim, placement in enumerate(tensor.placements) if isinstance(placement, Shard))
    return (tensor.device_mesh, dims) if dims else None


class ShardSums:
    """Sums rows of numbers, one row per parameter, over the ranks that hold parts of that parameter.

    Args:
        parameters: In the order of the rows. Parameters sharded over the same ranks share one all-reduce;
            rows of unsharded parameters (plain modules, DDP) are left as they are.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.groups: dict[tuple[DeviceMesh, tuple[int, ...]], list[int]] = {}
        self.all_rows = len(parameters)
        for row, parameter in enumerate(parameters):
            sharded = sharded_dims(parameter)
            if sharded is not None:
                self.groups.setdefault(sharded, []).append(row)

    def __call__(self, rows: Tensor) -> Tensor:
        """Sum ``rows`` (P, K) in place and return them. Every rank of a mesh has to call this."""
        for (mesh, dims), index in self.groups.items():
            part = rows if len(index) == self.all_rows else rows[index]
            for dim in dims:
                dist.all_reduce(part, group=mesh.get_group(dim))
            if part is not rows:
                rows[index] = part
        return rows

    def before(self, values: Tensor) -> Tensor:
        """Sums of ``values`` (P,) over the ranks that come earlier in each parameter's mesh; 0 where it is whole."""
        result = torch.zeros_like(values)
        for (mesh, dims), index in self.groups.items():
            sizes = [mesh.size(dim) for dim in dims]
            place = sum(mesh.get_local_rank(dim) * math.prod(sizes[i + 1 :]) for i, dim in enumerate(dims))
            table = torch.zeros(len(index), math.prod(sizes), dtype=values.dtype, device=values.device)
            table[:, place] = values[index]
            for dim in dims:
                dist.all_reduce(table, group=mesh.get_group(dim))
            result[index] = table[:, :place].sum(1)
        return result


def fingerprint(parameters: Mapping[str, Tensor], values: Mapping[str, Tensor] | None = None) -> str:
    """SHA-256 over names, shapes and every value, the same on any device, in any dtype and under any sharding.

    Values enter as a sum of scrambled bit patterns in 64-bit integers, which does not depend on the order of
    summation, so shards can be summed; it is a check against mistakes, not against an adversary.
    """
    values = parameters if values is None else values
    names = sorted(parameters)
    rows = []
    for name in names:
        total = torch.zeros((), dtype=torch.int64, device=local(values[name]).device)
        for (part,) in chunks(local(values[name])):
            bits = (part.to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 turns -0 into 0
            bits = bits * _MIX[0]
            total += ((bits ^ (bits >> 29)) * _MIX[1]).sum()
        rows.append(total)
    if not rows:
        return hashlib.sha256().hexdigest()
    sums = ShardSums([parameters[name] for name in names])(torch.stack(rows).unsqueeze(1))
    digest = hashlib.sha256()
    for name, value in zip(names, sums.squeeze(1).tolist(), strict=True):
        digest.update(f"{name} {tuple(parameters[name].shape)} {value}\n".encode())
    return digest.hexdigest()
