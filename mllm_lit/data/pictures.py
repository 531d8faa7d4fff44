"""Several questions on one picture cost one decode and one pass through the vision encoder per batch."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from mllm_lit.backbones.family import family_of


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
    first = [place for place, number in enumerate(pictures) if number not in pictures[:place]]
    wanted = len(first) < len(pictures) or (reuse and pictures)
    nested = "get_image_features" in vars(inner)
    if not family_of(model).features_by_picture or nested or not wanted:
        yield
        return
    original: Any = inner.get_image_features
    signature = inspect.signature(original)
    kept: list[Any] = []

    @wraps(original)  # generate() reads its signature.
    def once(*args: Any, **kwargs: Any) -> Any:
        if not kept or not reuse:
            named = signature.bind(*args, **kwargs).arguments
            kept[:] = [_encode(original, {**named.pop("kwargs", {}), **named}, first, pictures)]
        return kept[0]

    inner.get_image_features = once  # type: ignore[assignment]
    try:
        yield
    finally:
        # What was set is an attribute of the instance; the class's method is behind it.
        del inner.get_image_features


def _encode(original: Any, arguments: dict[str, Any], first: list[int], pictures: Sequence[int]) -> Any:
    chosen = _chosen(arguments, first, len(pictures)) if len(first) < len(pictures) else None
    if chosen is None:
        return original(**arguments)
    output = original(**{**arguments, **chosen})
    features = output.pooler_output
    if isinstance(features, Tensor):
        output.pooler_output = features[torch.tensor(pictures, device=features.device)]
    else:
        output.pooler_output = tuple(features[number] for number in pictures)
    return output


def _chosen(arguments: dict[str, Any], first: list[int], count: int) -> dict[str, Any] | None:
    """The arguments with the first of each picture alone; ``None`` if some cannot be told apart by picture."""
    chosen: dict[str, Any] = {}
    for name, value in arguments.items():
        if not isinstance(value, Tensor):
            continue
        grid = arguments.get("image_grid_thw")
        if name == "pixel_values" and grid is not None:
            parts = torch.split(value, grid.prod(-1).tolist())
            chosen[name] = torch.cat([parts[place] for place in first]) if len(parts) == count else None
        else:
            chosen[name] = value[first] if len(value) == count else None
    return None if any(value is None for value in chosen.values()) else chosen


def numbered(keys: Sequence[Any]) -> tuple[int, ...]:
    """Each key's number, in the order of first appearance.

    >>> numbered(["b", "a", "b"])
    (0, 1, 0)
    """
    numbers: dict[Any, int] = {}
    return tuple(numbers.setdefault(key, len(numbers)) for key in keys)
