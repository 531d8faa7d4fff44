"""Which linear layers an adapter goes to, by full path under the LLM, so that nothing else is ever hit."""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

from mllm_lit.backbones.layout import Layout, Role
from mllm_lit.errors import AdapterError

if TYPE_CHECKING:
    from torch import nn

Where = Literal["attention", "mlp", "gate_up", "both"]
"""Linear layers of a decoder block: those of the attention, those of the MLP, of the latter those that read the
residual stream (gate and up, not down), or all."""
Blocks = int | list[int] | Literal["all"]

# The child of a decoder block that mixes positions; every other linear in a block belongs to its MLP.
ATTENTION = {"self_attn", "self_attention", "attn", "attention", "cross_attn", "linear_attn", "mixer", "conv"}
# Linears that choose experts; an update there reroutes tokens.
ROUTERS = {"gate", "router", "shared_expert_gate"}
# Linears that write back to the residual stream.
OUTPUTS = {"o_proj", "out_proj", "down_proj", "fc2", "w2", "wo", "dense", "c_proj", "dense_4h_to_h"}


def chosen_blocks(layout: Layout, model: "nn.Module", blocks: Blocks) -> list[int]:
    """The indices that a ``blocks`` argument means: an integer L for the last L, a list, or ``all``.

    Raises:
        AdapterError: A block is asked for that the LLM does not have.
    """
    count = sum(1 for _ in model.get_submodule(layout.blocks).children())
    if blocks == "all":
        return list(range(count))
    if isinstance(blocks, int):
        if not 0 <= blocks <= count:
            raise AdapterError(f"blocks: {blocks} asks for the last {blocks} of {count} blocks.")
        return list(range(count - blocks, count))
    if outside := [index for index in blocks if not 0 <= int(index) < count]:
        raise AdapterError(f"blocks: {outside} are not there; the LLM has blocks 0 to {count - 1}.")
    return sorted({int(index) for index in blocks})


def block_linears(model: "nn.Module", layout: Layout, where: Where, blocks: Blocks = "all") -> "dict[str, nn.Module]":
    """The linear layers of the decoder blocks, by full name.

    Raises:
        AdapterError: There are none at that place.
    """
    wanted = set(chosen_blocks(layout, model, blocks))
    found = {}
    for name, module in model.named_modules():
        index = layout.block_of(name)
        if index not in wanted or not _is_linear(module):
            continue
        path = name.removeprefix(f"{layout.blocks}.{index}.").split(".")
        place = "attention" if path[0] in ATTENTION else "mlp"
        part = "gate_up" if place == "mlp" and path[-1] not in OUTPUTS else place
        if path[-1] not in ROUTERS and where in (place, part, "both"):
            found[name] = module
    if not found:
        raise AdapterError(f"No linear layer found at where: {where} in blocks {sorted(wanted)} of {layout.blocks}.")
    return found


def role_linears(model: "nn.Module", layout: Layout, role: Role) -> "dict[str, nn.Module]":
    """All linear layers of a role, by full name.

    Raises:
        AdapterError: The role has none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if name and _is_linear(module) and layout.role_of(name) == role
    }
    if not found:
        raise AdapterError(f"The {role} of this backbone has no linear layer to adapt.")
    return found


def pattern(names: Iterable[str]) -> str:
    """One regular expression that matches exactly the given module names, for peft's ``target_modules``.

    >>> pattern(["llm.layers.0.mlp.up", "llm.layers.1.mlp.up", "head"])
    'head|llm\\\\.layers\\\\.(?:0|1)\\\\.mlp\\\\.up'
    """
    families: dict[tuple[str, str], list[str]] = {}
    for name in names:
        match = re.search(r"\.(\d+)(?=\.|$)", name)
        head, index, tail = (name[: match.start(1)], match[1], name[match.end(1) :]) if match else (name, "", "")
        families.setdefault((head, tail), []).append(index)
    parts = []
    for (head, tail), indices in families.items():
        unique = sorted(set(indices), key=lambda index: int(index or 0))
        parts.append(re.escape(head) + (f"(?:{'|'.join(unique)})" if unique != [""] else "") + re.escape(tail))
    return "|".join(sorted(parts))


def _is_linear(module: "nn.Module") -> bool:
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)
