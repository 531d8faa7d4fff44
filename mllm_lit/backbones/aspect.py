"""How a picture that is not square becomes one, for vision encoders that take squares only."""

from typing import Any, Literal, get_args

from mllm_lit.backbones.family import makes_squares
from mllm_lit.errors import UserError

Aspect = Literal["pad", "resize", "crop"]


class AspectError(UserError, ValueError):
    """An image processor cannot treat pictures the way it was asked to."""


def with_aspect(images: Any, aspect: Aspect) -> Any:
    """An image processor like the given one, but for its way to a square.

    Args:
        images: An image processor of CLIP, SigLIP, DINOv2 or LLaVA.
        aspect: ``pad`` adds borders of the mean colour, as LLaVA-1.5 was trained with; ``resize`` squeezes, as VILA
            does; ``crop`` cuts the middle out, as CLIP does and as LLaVA's Hugging Face folders are set up.

    Raises:
        AspectError: The processor makes no squares (Qwen-VL's, say), or ``aspect`` is none of the three.
    """
    from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

    if aspect not in get_args(Aspect):
        raise AspectError(f"aspect {aspect!r} is unknown; there are {list(get_args(Aspect))}.")
    settings = {key: value for key, value in images.to_dict().items() if key not in _NAMES}
    side = _side(images)
    name = type(images).__name__
    if side is None or not makes_squares(images):
        raise AspectError(f"{name} makes no squares of one size, so aspect: {aspect} means nothing to it. Drop it.")
    square = {"height": side, "width": side}
    if aspect == "resize":
        change = {"size": square, "do_center_crop": False, "do_pad": False}
    else:
        change = {"size": {"shortest_edge": side}, "crop_size": square, "do_center_crop": True}
        change["do_pad"] = aspect == "pad"
    return LlavaImageProcessorPil(**{**settings, **change})


def side_of(images: Any) -> int:
    """Pixels along one side of the pictures that an image processor makes.

    Raises:
        AspectError: They are not squares of one size.
    """
    side = _side(images)
    if side is None:
        raise AspectError(f"{type(images).__name__} makes no squares of one size: {images.to_dict()}")
    return side


# What an image processor's dictionary says besides its settings.
_NAMES = {"image_processor_type", "processor_class", "data_format", "feature_extractor_type"}


def _side(images: Any) -> int | None:
    size = getattr(images, "crop_size", None) if getattr(images, "do_center_crop", False) else None
    size = dict(size or getattr(images, "size", None) or {})
    height, width = size.get("height"), size.get("width")
    return int(height) if height is not None and height == width else None
