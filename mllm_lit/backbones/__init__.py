"""Multimodal LLMs, their parts addressed by role."""

from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.layout import Layout, LayoutError, Role, find_layout
from mllm_lit.backbones.load import Backbone, LoadedBackbone
from mllm_lit.backbones.original import OriginalBackbone
from mllm_lit.backbones.parts import ComposedBackbone
from mllm_lit.backbones.smollm2_llava import SmolLM2LLaVA
from mllm_lit.errors import BackboneError

if TYPE_CHECKING:
    from mllm_lit.backbones.pictures import VisionCache

__all__ = [
    "Backbone",
    "BackboneError",
    "ComposedBackbone",
    "Layout",
    "LayoutError",
    "LoadedBackbone",
    "OriginalBackbone",
    "Role",
    "SmolLM2LLaVA",
    "VisionCache",
    "find_layout",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """:class:`VisionCache`, once it is asked for: it needs torch, which the other names do without."""
        if name != "VisionCache":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from mllm_lit.backbones.pictures import VisionCache

        return VisionCache
