"""Several questions on one picture cost one decode and one pass through the vision encoder per batch."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn

from mllm_lit.backbones.family import family_of


def in_front(module: nn.Module, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """Have ``call(original, *args, **kwargs)`` answer in place of a module's method.

    Returns:
        Gives the method back.
    """
    original = getattr(module, name)

    @wraps(original)  # generate() reads its signature.
    def instead(*args: Any, **kwargs: Any) -> Any:
        return call(original, *args, **kwargs)

    setattr(module, name, instead)  # an attribute of the instance; the class's method is behind it
    return partial(delattr, module, name)


def first_places(keys: Sequence[Any]) -> dict[Any, int]:
    """Where each key is first, in the order of these places."""
    return {key: keys.index(key) for key in dict.fromkeys(keys)}


def numbered(keys: Sequence[Any]) -> tuple[int, ...]:
    """Each key's number, in the order of first appearance.

    >>> numbered(["b", "a", "b"])
    (0, 1, 0)
    """
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return tuple(numbers[key] for key in keys)


@contextmanager
def encoded_once(model: Any, pictures: Sequence[int], reuse: bool = False) -> Iterator[None]:
    """Within it, the vision encoder and the connector see each distinct picture of a batch once.

    The features, and what is computed from them, are those without it up to the order of floating-point sums. Families
    without features by picture, and batches in which pictures and pixels do not match (tiled pictures, say), are left
    as they are, as is a call inside of another.

    Args:
        model: A Hugging Face model with the backbone under ``model``.
        pictures: For each image of the batch, in the order of the pixels, the number of the picture; equal numbers
            are equal pictures, and numbers go up by one where a picture is new.
        reuse: Encode in the first call only: later ones have the same pictures and no gradient.
    """
    inner: nn.Module = model.model
    first = list(first_places(pictures).values())
    wanted = len(first) < len(pictures) or (reuse and pictures)
    nested = "get_image_features" in vars(inner)
    if not family_of(model).features_by_picture or nested or not wanted:
        yield
        return
    kept: list[Any] = []

    def once(original: Any, *args: Any, **kwargs: Any) -> Any:
        if not kept or not reuse:
            named = inspect.signature(original).bind(*args, **kwargs).arguments
            kept[:] = [_encode(original, {**named.pop("kwargs", {}), **named}, first, pictures)]
        return kept[0]

    give_back = in_front(inner, "get_image_features", once)
    try:
        yield
    finally:
        give_back()


def _encode(original: Any, arguments: dict[str, Any], first: list[int], pictures: Sequence[int]) -> Any:
    chosen = _chosen(arguments, first, len(pictures)) if len(first) < len(pictures) else None
    if chosen is None:
        return original(**arguments)
    output = original(**{**arguments, **chosen})
    features = output.pooler_output
    alike = isinstance(features, Tensor)
    output.pooler_output = features[list(pictures)] if alike else tuple(features[number] for number in pictures)
    return output


def _chosen(arguments: dict[str, Any], first: list[int], count: int) -> dict[str, Tensor] | None:
    """The arguments with the first of each picture alone; ``None`` if some cannot be told apart by picture."""
    parts: dict[str, Any] = {name: value for name, value in arguments.items() if isinstance(value, Tensor)}
    if (grid := parts.get("image_grid_thw")) is not None:
        parts["pixel_values"] = parts["pixel_values"].split(grid.prod(-1).tolist())
    if any(len(part) != count for part in parts.values()):
        return None
    return {
        name: part[first] if isinstance(part, Tensor) else torch.cat([part[place] for place in first])
        for name, part in parts.items()
    }
