"""One tiny random model of every family, each with inputs made here; nothing is downloaded."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics2.image_processing_pil_idefics2 import Idefics2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from tests.tiny import tiny_tokenizer

MARKERS = {
    "video_token": "<video>",
    "fake_image_token": "<fake_token_around_image>",
    "global_image_token": "<global-img>",
    "end_of_utterance_token": "<end_of_utterance>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "boi_token": "<start_of_image>",
    "eoi_token": "<end_of_image>",
    "image_break_token": "[IMG_BREAK]",
    "image_end_token": "[IMG_END]",
}
VOCABULARY = 2048
SIZE = {"height": 32, "width": 32}
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 1024,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
QWEN = ("<|vision_start|>", "<|vision_end|>")
GEMMA = ("<start_of_image>", "<end_of_image>")
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


@cache
def zoo_tokenizer() -> hf.PreTrainedTokenizerFast:
    """The tiny tokenizer with the markers of every family."""
    return tiny_tokenizer(MARKERS)


def _id(token: str) -> int:
    return int(zoo_tokenizer().convert_tokens_to_ids(token))


@dataclass
class Animal:
    """A model with the two halves of a processor.

    The processors of several families need torchvision even for a picture, so the text is expanded here: each
    ``<image>`` becomes as many image tokens as the model makes features of that image.

    Attributes:
        model: In eval mode.
        images: The family's image processor.
        token: The token whose embedding is replaced by a feature.
        around: What the family puts before and after an image.
        typed: The name under which the model is told which tokens are an image's, if it has to be told.
    """

    model: Any
    images: Any
    token: str = "<image>"
    around: tuple[str, str] = ("", "")
    typed: str | None = None

    def inputs(self, texts: list[str], pictures: Sequence[Image.Image] = ()) -> dict[str, torch.Tensor]:
        """Left-padded inputs; the texts hold ``<image>`` once a picture, in order."""
        tokenizer = zoo_tokenizer()
        visual: dict[str, torch.Tensor] = {}
        counts: list[int] = []
        if pictures:
            visual = dict(self.images([list(pictures)], return_tensors="pt"))
            visual = {key: value for key, value in visual.items() if key in VISUAL}
            with torch.no_grad():
                owner = self.model if hasattr(self.model, "get_image_features") else self.model.model
                features = owner.get_image_features(**visual, return_dict=True).pooler_output
            counts = [len(feature) for feature in features]
            if len(counts) < len(pictures):  # Some families pool all pictures of a row, which are of one size.
                counts = [sum(counts) // len(pictures)] * len(pictures)
        rest = iter(counts)
        texts = [
            re.sub("<image>", lambda _: self.around[0] + self.token * next(rest) + self.around[1], text)
            for text in texts
        ]
        out = dict(tokenizer(texts, padding=True, return_tensors="pt", add_special_tokens=False))
        out.pop("token_type_ids", None)
        if self.typed is not None:
            out[self.typed] = (out["input_ids"] == _id(self.token)).long()
        return {**out, **visual}


VISUAL = {"pixel_values", "image_sizes", "image_grid_thw", "pixel_attention_mask", "batch_num_images"}


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of one colour with a black corner, so that no feature is constant."""
    image = Image.new("RGB", size, colour)
    image.paste((0, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


def _llava() -> Animal:
    config = hf.LlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=_id("<image>"),
    )
    return Animal(hf.LlavaForConditionalGeneration(config), _clip_images())


def _clip_images() -> Any:
    return CLIPImageProcessorPil(size=SIZE, crop_size=SIZE, do_center_crop=False)


def _vipllava() -> Animal:
    config = hf.VipLlavaConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=_id("<image>"),
        vision_feature_layers=[-2, -1],
    )
    return Animal(hf.VipLlavaForConditionalGeneration(config), _clip_images())


def _llava_next() -> Animal:
    grid = [[32, 64], [64, 32]]
    config = hf.LlavaNextConfig(
        vision_config=hf.CLIPVisionConfig(**VISION),
        text_config=hf.LlamaConfig(**TEXT),
        image_token_index=_id("<image>"),
        image_grid_pinpoints=grid,
    )
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=SIZE, do_center_crop=False, image_grid_pinpoints=grid
    )
    return Animal(hf.LlavaNextForConditionalGeneration(config), images)


def _llava_onevision() -> Animal:
    grid = [[32, 64], [64, 32]]
    config = hf.LlavaOnevisionConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=_id("<image>"),
        video_token_index=_id("<video>"),
        image_grid_pinpoints=grid,
        vision_aspect_ratio="anyres_max_1",
    )
    images = LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=grid)
    return Animal(hf.LlavaOnevisionForConditionalGeneration(config), images)


def _qwen_images(patch: int = 8) -> Any:
    return Qwen2VLImageProcessorPil(
        patch_size=patch, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )


def _qwen_ids() -> dict[str, int]:
    return {
        "image_token_id": _id("<image>"),
        "video_token_id": _id("<video>"),
        "vision_start_token_id": _id("<|vision_start|>"),
        "vision_end_token_id": _id("<|vision_end|>"),
    }


def _qwen2_vl() -> Animal:
    config = hf.Qwen2VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            "depth": 2,
            "embed_dim": 32,
            "hidden_size": 32,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        **_qwen_ids(),
    )
    return Animal(hf.Qwen2VLForConditionalGeneration(config), _qwen_images(), around=QWEN, typed="mm_token_type_ids")


def _qwen2_5_vl() -> Animal:
    config = hf.Qwen2_5_VLConfig(
        text_config={**TEXT, "rope_parameters": MROPE},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 32,
            "fullatt_block_indexes": [1],
        },
        **_qwen_ids(),
    )
    return Animal(hf.Qwen2_5_VLForConditionalGeneration(config), _qwen_images(), around=QWEN, typed="mm_token_type_ids")


def _qwen3_vl() -> Animal:
    config = hf.Qwen3VLConfig(
        text_config={**TEXT, "rope_parameters": {**MROPE, "mrope_interleaved": True}},
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        **_qwen_ids(),
    )
    return Animal(hf.Qwen3VLForConditionalGeneration(config), _qwen_images(), around=QWEN, typed="mm_token_type_ids")


def _idefics(config_class: Any, model_class: Any, images: Any) -> Animal:
    config = config_class(
        vision_config={**VISION, "model_type": "idefics3_vision"} if config_class is hf.Idefics3Config else VISION,
        text_config=hf.LlamaConfig(**TEXT),
        image_token_id=_id("<image>"),
        scale_factor=2,
        pad_token_id=0,
    )
    return Animal(model_class(config), images)


def _idefics3() -> Animal:
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    return _idefics(hf.Idefics3Config, hf.Idefics3ForConditionalGeneration, images)


def _smolvlm() -> Animal:
    images = SmolVLMImageProcessorPil(
        size={"longest_edge": 32}, max_image_size={"longest_edge": 32}, do_image_splitting=False
    )
    return _idefics(hf.SmolVLMConfig, hf.SmolVLMForConditionalGeneration, images)


def _internvl() -> Animal:
    config = hf.InternVLConfig(
        vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
        text_config=hf.Qwen2Config(**TEXT),
        image_token_id=_id("<IMG_CONTEXT>"),
        image_seq_length=4,
    )
    images = GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=False)
    return Animal(hf.InternVLForConditionalGeneration(config), images, "<IMG_CONTEXT>", ("<img>", "</img>"))


def _paligemma() -> Animal:
    config = hf.PaliGemmaConfig(
        vision_config=hf.SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False),
        text_config=hf.Gemma2Config(**TEXT),
        image_token_index=_id("<image>"),
        projection_dim=32,
        hidden_size=32,
        pad_token_id=0,
    )
    images = SiglipImageProcessorPil(size=SIZE)
    return Animal(hf.PaliGemmaForConditionalGeneration(config), images, typed="token_type_ids")


def _gemma3() -> Animal:
    config = hf.Gemma3Config(
        text_config=hf.Gemma3TextConfig(**TEXT, sliding_window=512),
        vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=_id("<image>"),
        boi_token_index=_id("<start_of_image>"),
        eoi_token_index=_id("<end_of_image>"),
        pad_token_id=0,
    )
    images = Gemma3ImageProcessorPil(size=SIZE, image_seq_length=4)
    model = hf.Gemma3ForConditionalGeneration(config)
    # Left at zero by its own initialisation, which would hide every picture.
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
    return Animal(model, images, around=GEMMA, typed="token_type_ids")


def _pixtral_images() -> Any:
    return PixtralImageProcessorPil(size={"longest_edge": 32}, patch_size={"height": 8, "width": 8})


def _pixtral_vision() -> Any:
    return hf.PixtralVisionConfig(**{**VISION, "head_dim": 8})


def _pixtral() -> Animal:
    config = hf.LlavaConfig(
        vision_config=_pixtral_vision(),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=_id("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return Animal(hf.LlavaForConditionalGeneration(config), _pixtral_images())


def _mistral3() -> Animal:
    config = hf.Mistral3Config(
        vision_config=_pixtral_vision(),
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=_id("<image>"),
        spatial_merge_size=2,
    )
    return Animal(hf.Mistral3ForConditionalGeneration(config), _pixtral_images())


def _idefics2() -> Animal:
    perceiver = {"hidden_size": 32, "resampler_n_latents": 4, "resampler_depth": 1, "resampler_n_heads": 4}
    config = hf.Idefics2Config(
        vision_config=VISION,
        perceiver_config={**perceiver, "resampler_head_dim": 8, "num_key_value_heads": 2},
        text_config=hf.MistralConfig(**TEXT),
        image_token_id=_id("<image>"),
    )
    images = Idefics2ImageProcessorPil(size={"shortest_edge": 32, "longest_edge": 32}, do_image_splitting=False)
    return Animal(hf.Idefics2ForConditionalGeneration(config), images)


def _siglip(**more: Any) -> Any:
    return hf.SiglipVisionConfig(**VISION, vision_use_head=False, **more)


def _aya_vision() -> Animal:
    config = hf.AyaVisionConfig(
        vision_config=_siglip(), text_config=hf.Cohere2Config(**TEXT), image_token_index=_id("<image>")
    )
    images = GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=False)
    return Animal(hf.AyaVisionForConditionalGeneration(config), images)


def _cohere2_vision() -> Animal:
    config = hf.Cohere2VisionConfig(
        vision_config=_siglip(),
        text_config=hf.Cohere2Config(**TEXT),
        image_token_id=_id("<image>"),
        alignment_intermediate_size=64,
    )
    images = GotOcr2ImageProcessorPil(size=SIZE, crop_to_patches=False)
    return Animal(hf.Cohere2VisionForConditionalGeneration(config), images)


def _deepseek_vl() -> Animal:
    config = hf.DeepseekVLConfig(
        vision_config=_siglip(),
        text_config=hf.LlamaConfig(**TEXT, tie_word_embeddings=True),
        image_token_id=_id("<image>"),
    )
    return Animal(hf.DeepseekVLForConditionalGeneration(config), SiglipImageProcessorPil(size=SIZE))


def _glm4v() -> Animal:
    text = {key: value for key, value in TEXT.items() if key != "head_dim"}
    config = hf.Glm4vConfig(
        text_config={
            **text,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "image_size": 32,
            "patch_size": 8,
        },
        image_token_id=_id("<image>"),
        video_token_id=_id("<video>"),
        image_start_token_id=_id("<|vision_start|>"),
        image_end_token_id=_id("<|vision_end|>"),
    )
    return Animal(hf.Glm4vForConditionalGeneration(config), _qwen_images(), around=QWEN, typed="mm_token_type_ids")


def _qwen3_5() -> Animal:
    linear = {f"linear_{side}_head_dim": 8 for side in ("key", "value")} | {"linear_num_key_heads": 2}
    config = hf.Qwen3_5Config(
        text_config={
            **TEXT,
            **linear,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
            "rope_parameters": {**MROPE, "mrope_interleaved": True, "partial_rotary_factor": 1.0},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 4,
            "patch_size": 8,
            "num_position_embeddings": 16,
        },
        **_qwen_ids(),
    )
    return Animal(hf.Qwen3_5ForConditionalGeneration(config), _qwen_images(), around=QWEN, typed="mm_token_type_ids")


ZOO: dict[str, Callable[[], Animal]] = {
    "llava": _llava,
    "vipllava": _vipllava,
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "qwen2_vl": _qwen2_vl,
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
    "internvl": _internvl,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "pixtral": _pixtral,
    "mistral3": _mistral3,
    "idefics2": _idefics2,
    "aya_vision": _aya_vision,
    "cohere2_vision": _cohere2_vision,
    "deepseek_vl": _deepseek_vl,
    "glm4v": _glm4v,
    "qwen3_5": _qwen3_5,
}


def build(name: str, seed: int = 0) -> Animal:
    """One of :data:`ZOO`, the global random state left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        animal = ZOO[name]()
    animal.model.eval()
    return animal
