"""Multimodal LLMs, their parts addressed by role."""

from mllm_lit.backbones.layout import Layout, LayoutError, Role, find_layout
from mllm_lit.backbones.load import Backbone, BackboneError, LoadedBackbone

__all__ = ["Backbone", "BackboneError", "Layout", "LayoutError", "LoadedBackbone", "Role", "find_layout"]
