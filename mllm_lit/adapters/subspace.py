"""Low-rank updates that begin where the model's layers read least, so that what they know is disturbed least.

Plain torch. With W (out, in) the weight of a layer and X its inputs on text or rows that stand for what is to be kept,
both split W into a frozen rest and ``B·A`` of rank r, which trains.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from mllm_lit.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor, nn

Pair = tuple["Tensor", "Tensor"]
DAMPING = 0.01
LIMIT = 2 << 30
"""Of the memory that XᵀX takes at a time: those of all layers of a 7B model are 56 GB."""


def corda(weight: "Tensor", products: "Tensor", rank: int) -> Pair:
    """CorDA in its knowledge-preserving mode (arXiv 2406.05223): the part of W that matters least to these inputs.

    With C = XᵀX, to whose diagonal a hundredth of its mean is added, and ``W·C = U·S·Vᵀ``: ``B·A = U_r·S_r·V_rᵀ·C⁻¹``
    over the r smallest singular values, S_r shared out by its root.

    Args:
        weight: (out, in).
        products: XᵀX, (in, in), in the dtype of the weight; its scale plays no part.
        rank: r.

    Returns:
        B (out, r) and A (r, in).
    """
    import torch

    damped = products / products.diagonal().mean()
    damped.diagonal().add_(DAMPING)
    u, s, vh = torch.linalg.svd(weight @ damped, full_matrices=False)
    root = s[-rank:].sqrt()
    return u[:, -rank:] * root, torch.linalg.solve(damped, vh[-rank:].T).T * root[:, None]


def lora_null(weight: "Tensor", products: "Tensor", rank: int) -> Pair:
    """LoRA-Null (arXiv 2503.02659): the part of W that reads from where these inputs are nearest to zero.

    With N (in, r) the eigenvectors of XᵀX with the r smallest eigenvalues: ``B·A = W·N·Nᵀ``, by its singular values,
    shared out by their root.

    Args:
        weight: (out, in).
        products: XᵀX, (in, in), in the dtype of the weight; its scale plays no part.
        rank: r.

    Returns:
        B (out, r) and A (r, in).
    """
    import torch

    least = torch.linalg.eigh(products).eigenvectors[:, :rank]
    u, s, vh = torch.linalg.svd(weight @ least, full_matrices=False)
    root = s.sqrt()
    return u * root, root[:, None] * (vh @ least.T)


SUBSPACES: dict[str, Callable[["Tensor", "Tensor", int], Pair]] = {"corda": corda, "lora_null": lora_null}


@contextmanager
def input_products(layers: Mapping[str, Any]) -> "Iterator[dict[str, Tensor]]":
    """Collect XᵀX of what linear layers are given.

    Args:
        layers: By any name; with ``in_features``.

    Yields:
        By the same name, (in, in), fp64, added to by every forward pass inside the context. What is nearest to zero
        would be lost in the rounding of fp32, which is relative to what is largest.
    """
    import torch

    found: dict[str, Tensor] = {}
    handles = []
    for name, layer in layers.items():
        device = next(layer.parameters()).device
        found[name] = torch.zeros(layer.in_features, layer.in_features, dtype=torch.float64, device=device)

        def keep(module: "nn.Module", args: "tuple[Tensor, ...]", total: "Tensor" = found[name]) -> None:
            x = args[0].detach().flatten(0, -2).double()
            total.addmm_(x.T, x)

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def low_rank_layers(model: "nn.Module") -> dict[str, Any]:
    """peft's low-rank layers in a model, by name.

    Raises:
        AdapterError: There are none, or some whose weights are packed.
    """
    from peft.tuners.lora import Linear, LoraLayer

    found = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    if not found or not all(isinstance(layer, Linear) for layer in found.values()):
        kinds = sorted({type(layer).__name__ for layer in found.values()})
        raise AdapterError(
            "adapter.init changes the weights under low-rank layers, so all of these have to be of peft's kind Linear; "
            f"{type(model).__name__} has {' and '.join(kinds) or 'none'}. "
            "Leave adapter.init out, or drop backbone.quantization."
        )
    return found


def in_parts(layers: Mapping[str, Any]) -> "Iterator[dict[str, Any]]":
    """Layers in as few parts as leave the products of each within ``LIMIT`` bytes; a larger one is alone."""
    part: dict[str, Any] = {}
    size = 0
    for name, layer in layers.items():
        own = 8 * layer.in_features**2
        if part and size + own > LIMIT:
            yield part
            part, size = {}, 0
        part[name], size = layer, size + own
    if part:
        yield part


def split_off_subspace(model: "nn.Module", init: str, products: "Mapping[str, Tensor]") -> None:
    """Give low-rank layers the B and A of their subspace, and take what they add from the weights under them.

    Args:
        model: With peft's layers in it.
        init: A key of ``SUBSPACES``.
        products: XᵀX by the names of some layers, fp64, zero where nothing was read.

    Raises:
        AdapterError: A layer was given no input, or has fewer dimensions than the rank.
    """
    layers = low_rank_layers(model)
    if unseen := [name for name, total in products.items() if not total.any()]:
        raise AdapterError(
            f"init: {init} looks at what layers read, and {unseen[0]!r} and {len(unseen) - 1} more read nothing: "
            "generated text has no picture. Set adapter.init_from: sources, or adapt the LLM alone."
        )
    for name, total in products.items():
        layer = layers[name]
        weight, rank = plain_weight(layer), layer.r["default"]
        if rank > min(weight.shape):
            raise AdapterError(f"init: {init}: adapter.rank is {rank}, but {name!r} is {tuple(weight.shape)}.")
        root = layer.scaling["default"] ** 0.5
        split_off(layer, *(half / root for half in SUBSPACES[init](weight, total, rank)))


def plain_weight(layer: Any) -> "Tensor":
    """The weight under a low-rank layer as (out, in), fp64."""
    weight: Tensor = layer.get_base_layer().weight.detach().double()
    return weight.T if layer.fan_in_fan_out else weight


def split_off(layer: Any, b: "Tensor", a: "Tensor") -> None:
    """Give a low-rank layer these B and A, and take what they add from the weight under it."""
    import torch

    with torch.no_grad():
        layer.lora_B["default"].weight.copy_(b)
        layer.lora_A["default"].weight.copy_(a)
        weight = layer.get_base_layer().weight
        weight.copy_(weight.float() - layer.get_delta_weight("default").float())
