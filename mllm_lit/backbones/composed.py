"""The Hugging Face model that parts are put into: LLaVA with any connector, saved and loaded like any other.

Importing this module makes its type known to the Auto classes of transformers.
"""

from typing import Any

from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mllm_lit.backbones.connectors import CONNECTORS, Downsample, PixelShuffle, Resampler, Sizes


class ComposedConfig(LlavaConfig):  # type: ignore[no-untyped-call]
    """A LLaVA config with the kind of connector and its sizes."""

    model_type = "mllm_lit_composed"
    connector: str = "mlp2x_gelu"
    connector_queries: int = 64
    connector_transposed: bool = False

    def sizes(self) -> Sizes:
        """What the connector is built from."""
        vision: Any = self.vision_config
        text: Any = self.text_config
        grid = vision.image_size // vision.patch_size
        layers = 1 if isinstance(self.vision_feature_layer, int) else len(self.vision_feature_layer)
        width = layers * vision.hidden_size
        return Sizes(grid, width, text.hidden_size, self.connector_queries, self.connector_transposed)


class ComposedForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA with its connector replaced by the one that the config names."""

    config_class = ComposedConfig

    def __init__(self, config: ComposedConfig) -> None:
        super().__init__(config)
        self.model.multi_modal_projector = self.fresh_connector(config)
        self.post_init()  # type: ignore[no-untyped-call]

    @staticmethod
    def fresh_connector(config: ComposedConfig) -> nn.Module:
        """A new connector, drawn from torch's global random state."""
        return CONNECTORS[config.connector](config.sizes())

    def _init_weights(self, module: nn.Module) -> None:
        # Already drawn by their constructors; the resampler's positions are no weights at all.
        if not isinstance(module, Resampler | Downsample | PixelShuffle):
            super()._init_weights(module)  # type: ignore[no-untyped-call]


AutoConfig.register(ComposedConfig.model_type, ComposedConfig)
AutoModelForImageTextToText.register(ComposedConfig, ComposedForConditionalGeneration)
AutoProcessor.register(ComposedConfig, LlavaProcessor)  # type: ignore[no-untyped-call]
