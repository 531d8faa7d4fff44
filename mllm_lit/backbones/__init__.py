"""Multimodal LLMs, their parts addressed by role."""

from mllm_lit.backbones.layout import Layout, LayoutError, Role, find_layout
from mllm_lit.backbones.load import Backbone, BackboneError, LoadedBackbone
from mllm_lit.backbones.original import OriginalBackbone
from mllm_lit.backbones.parts import ComposedBackbone
from mllm_lit.backbones.vision_cache import VisionCache

__all__ = [
    "Backbone",
    "BackboneError",
    "ComposedBackbone",
    "Layout",
    "LayoutError",
    "LoadedBackbone",
    "OriginalBackbone",
    "Role",
    "VisionCache",
    "find_layout",
]
