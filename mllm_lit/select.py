"""The k largest entries of a tensor, or of many jointly, sharded or not: exactly k, without sorting or gathering."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mllm_lit.tensors import ShardSums, chunks, local

_DIGITS = 256


def select_top(
    parameters: Mapping[str, Tensor],
    score: Callable[[str], Tensor],
    share: float,
    sum_shards: ShardSums,
    joint: bool = False,
) -> dict[str, Tensor]:
    """Where the top ``share`` of the entries are.

    The k-th largest score is found digit by digit in its fp32 bit pattern, whose order is that of the numbers:
    four passes that count, each summed over the shards, for all tensors at once.

    Args:
        parameters: By name, in the order of ``sum_shards``.
        score: The local scores of a parameter, at least 0; called once per pass, so that nothing need be stored.
        share: Of the entries, in [0, 1]; k is rounded to the nearest integer.
        joint: Rank the entries of all tensors together, not each tensor on its own.

    Returns:
        Local bool tensors. Of equal scores at the edge the first ones are taken, in the order of tensors and entries.
    """
    names = list(parameters)
    sizes = [parameters[name].numel() for name in names]
    device = local(parameters[names[0]]).device
    wanted = torch.tensor([round(share * (sum(sizes) if joint else size)) for size in sizes], device=device)
    threshold, above = torch.zeros_like(wanted), torch.zeros_like(wanted)
    rows = torch.arange(len(names), device=device)
    for shift in (24, 16, 8, 0):
        table = torch.zeros(len(names), _DIGITS, dtype=torch.int64, device=device)
        for row, name in enumerate(names):
            for (part,) in chunks(score(name)):
                bits = _bits(part)
                digits = ((bits >> shift) & (_DIGITS - 1))[(bits >> (shift + 8)) == threshold[row]]
                table[row] += torch.bincount(digits, minlength=_DIGITS)
        table = sum_shards(table)
        if joint:
            table = table.sum(0, keepdim=True).expand(len(names), -1)
        from_top = table.flip(1).cumsum(1).flip(1)  # entries whose digit is at least d
        digit = ((above[:, None] + from_top) >= wanted[:, None]).sum(1) - 1
        above = above + torch.nn.functional.pad(from_top, (0, 1))[rows, digit + 1]
        threshold = threshold * _DIGITS + digit

    equal = [_bits(score(name)) == threshold[row] for row, name in enumerate(names)]
    here = torch.stack([part.sum() for part in equal])
    left = wanted - above
    if joint:
        whole = sum_shards(here.clone().unsqueeze(1)).squeeze(1)
        left = left - (whole.cumsum(0) - whole)
    left = left - sum_shards.before(here)
    result = {}
    for row, name in enumerate(names):
        ties = equal[row]
        first = ties.flatten().cumsum(0).view_as(ties) <= left[row]
        result[name] = (_bits(score(name)) > threshold[row]) | (ties & first)
    return result


def _bits(score: Tensor) -> Tensor:
    return (score.to(torch.float32) + 0.0).view(torch.int32).to(torch.int64)  # + 0.0 turns -0 into 0
