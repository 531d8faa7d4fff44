"""What is particular to an architecture: one object per family, in place of names tested all over the package.

What holds for every Hugging Face model is not here, and neither is where a model keeps its parts; see
:mod:`mllm_lit.backbones.layout`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Family:
    """The quirks of some architectures; the defaults suit one that is not known here.

    Attributes:
        model_types: ``model_type`` of the configs that belong to it.
        processors: Names of its processor classes.
        features_by_picture: Whether ``get_image_features`` gives one entry per picture, and nothing else that the LLM
            reads: then equal pictures of a batch are encoded once.
        fixed_pictures: Whether every picture becomes the same tokens, whatever its size.
        spatial_positions: Whether the model derives positions over time and space from the inputs itself.
        first_position: Position of a row's first token.
        pictures_see_ahead: Whether a picture's tokens see those of the same picture that come later.
        suffix: Whether the processor has no chat format and takes an answer as ``suffix``: one question and one
            answer, at least one picture, and attention in both directions over picture and question (PaliGemma).
    """

    model_types: tuple[str, ...] = ()
    processors: tuple[str, ...] = ()
    features_by_picture: bool = False
    fixed_pictures: bool = False
    spatial_positions: bool = False
    first_position: int = 0
    pictures_see_ahead: bool = False
    suffix: bool = False

    def position_ids(self, attention_mask: "Tensor") -> "Tensor | None":
        """Positions of left-padded rows, (B, T); ``None`` if the model finds them itself."""
        if self.spatial_positions:
            return None
        return (attention_mask.cumsum(1) - 1).clamp(min=0) + self.first_position


FAMILIES: tuple[Family, ...] = (
    Family(
        ("llava", "vipllava", "mllm_lit_composed"), ("LlavaProcessor",), features_by_picture=True, fixed_pictures=True
    ),
    Family(("llava_next",), ("LlavaNextProcessor",), features_by_picture=True),
    Family(("llava_onevision",), ("LlavaOnevisionProcessor",), features_by_picture=True),
    Family(
        ("qwen2_vl", "qwen2_5_vl"),
        ("Qwen2VLProcessor", "Qwen2_5_VLProcessor"),
        features_by_picture=True,
        spatial_positions=True,
    ),
    Family(("qwen3_vl", "qwen3_vl_moe"), ("Qwen3VLProcessor",), spatial_positions=True),
    Family(("internvl",), ("InternVLProcessor",), features_by_picture=True),
    Family(("gemma3",), ("Gemma3Processor",), features_by_picture=True, pictures_see_ahead=True),
    Family(
        ("paligemma",),
        ("PaliGemmaProcessor",),
        features_by_picture=True,
        fixed_pictures=True,
        first_position=1,
        suffix=True,
    ),
    Family(("idefics3", "smolvlm"), ("Idefics3Processor", "SmolVLMProcessor")),
    Family(("mistral3", "pixtral"), ("PixtralProcessor",)),
)

# Vision encoders, by ``model_type``: whether their first feature is a class token.
CLASS_TOKEN = {
    "clip_vision_model": True,
    "dinov2": True,
    "siglip_vision_model": False,
    "efficientnet_lite": False,
}
# Image processors that make squares of one size, by the beginning of their names, and those that begin likewise.
SQUARES = ("CLIP", "Siglip", "Bit", "Llava")
NO_SQUARES = ("LlavaNext", "LlavaOnevision")


def family_of(model: Any) -> Family:
    """The family of a Hugging Face model; one that is not known is told by what it has."""
    kind = model.config.model_type
    known = next((family for family in FAMILIES if kind in family.model_types), None)
    return known or Family((kind,), spatial_positions=hasattr(getattr(model, "model", None), "get_rope_index"))


def family_of_processor(processor: Any) -> Family:
    """The family that a processor serves, as far as it matters for what the processor does."""
    name = type(processor).__name__
    return next((family for family in FAMILIES if name in family.processors), Family())


def makes_squares(images: Any) -> bool:
    """Whether an image processor makes pictures of one size with equal sides, without tiles."""
    name = type(images).__name__
    return name.startswith(SQUARES) and not name.startswith(NO_SQUARES)
