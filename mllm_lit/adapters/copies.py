"""Tensors brought to host memory; torch is not imported before there are some."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def snapshot(tensor: "Tensor") -> "Tensor":
    """A copy in host memory that later training does not touch; of a tensor without storage, another such."""
    return tensor.detach().clone() if tensor.is_meta else tensor.detach().to("cpu", copy=True)


@contextmanager
def as_transformers_is() -> Iterator[None]:
    """Within it, peft may read a property that transformers has renamed."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        yield


def whole(tensor: "Tensor") -> "Tensor":
    """A contiguous copy in host memory; of a sharded tensor, all of it."""
    full = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return full.detach().cpu().contiguous()
