"""``torch.compile`` of the LLM's blocks, one by one: one graph serves them all, and only where it pays."""

from typing import TYPE_CHECKING, Any

import torch

from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import BackboneError

if TYPE_CHECKING:
    from torch import nn


def check_compiler() -> None:
    """Stop where blocks are to be compiled for a CPU and nothing is there to do it.

    Raises:
        BackboneError: Saying what to install.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise BackboneError(
            "model.backbone.compile is true, and there is no C++ compiler that torch could compile with "
            f"({str(error).splitlines()[0]}). Install g++ (or name one by CXX), or set model.backbone.compile to false."
        ) from error


def compile_blocks(model: "nn.Module", layout: Layout) -> None:
    """Compile every block in place, as what is attached to it now stands; names of parameters stay.

    A block runs uncompiled where no gradient is asked for, and where it is given a cache: answers grow by a token a
    pass, and every length and every layer's part of the cache would be a graph of its own.
    """
    for block in model.get_submodule(layout.blocks).children():
        _compile(block)


def _compile(block: Any) -> None:
    eager = block._call_impl
    compiled: Any = torch.compile(eager, dynamic=True)

    def call(*args: Any, **kwargs: Any) -> Any:
        trains = torch.is_grad_enabled() and kwargs.get("past_key_values") is None
        return compiled(*args, **kwargs) if trains else eager(*args, **kwargs)

    # What torch's Module.compile() sets, and Module.__call__ goes to.
    block._compiled_call_impl = call
