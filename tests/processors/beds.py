"""The real processor of every family with a small random model: nothing is downloaded, and torchvision is not needed.

The processor and image processor classes are transformers' own, the image processors in their Pillow variant. Without
torchvision two things are put in their way:

- A processor that also takes videos wants a video processor of a class that cannot be looked up without torchvision.
  It gets a plain ``BaseVideoProcessor``, which is never called, and its look-up of classes is left out.
- The module of ``PixtralProcessor`` imports one function from the image processor that needs torchvision. It gets the
  function of the same name from the Pillow variant's module, which holds the same text.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch
import transformers as hf
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.pixtral import image_processing_pil_pixtral
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil
from transformers.video_processing_utils import BaseVideoProcessor

from mllm_lit.backbones import LoadedBackbone, find_layout
from mllm_lit.backbones.identity import identity_of
from mllm_lit.data.collate import Collate
from mllm_lit.data.prompt import Rendered
from tests.processors import formats
from tests.processors.formats import tokenizer

SIZE = {"height": 32, "width": 32}
GRID = [[32, 64], [64, 32], [64, 64]]
TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 2048,
    "max_position_embeddings": 4096,
}
VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
MROPE = {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0}


@dataclass
class Bed:
    """A family's processor and a random model of two blocks.

    Attributes:
        processor: The real class.
        build: Makes the model from the processor.
        plain_assistant: The chat format wants what the assistant says as a plain text.
        has_chat_format: There is one at all.
        ends_open: The chat format writes no end of turn behind an answer.
        loose_header: It writes other blanks before an answer than where it asks for one.
    """

    processor: Any
    build: Callable[[Any], Any]
    plain_assistant: bool = False
    has_chat_format: bool = True
    ends_open: bool = False
    loose_header: bool = False
    seed: int = 0
    _models: dict[int, Any] = field(default_factory=dict)

    @property
    def model(self) -> Any:
        """In eval mode, built once; the global random state is left as it was."""
        if self.seed not in self._models:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                model = self.build(self.processor).eval()
            text = self.processor.tokenizer
            model.generation_config.pad_token_id = text.pad_token_id
            model.generation_config.eos_token_id = text.eos_token_id
            model.generation_config.bos_token_id = text.bos_token_id
            self._models[self.seed] = model
        return self._models[self.seed]

    @property
    def images(self) -> Any:
        """The family's image processor."""
        return self.processor.image_processor

    def inputs(self, texts: list[str], pictures: Sequence[Image.Image] = ()) -> dict[str, torch.Tensor]:
        """What the processor makes of texts that hold ``<image>`` once a picture, in order; left-padded."""
        rest = iter(pictures)
        shown = [[next(rest) for _ in range(text.count("<image>"))] for text in texts]
        marked = [text.replace("<image>", self.picture) for text in texts]
        # Where an answer is given apart, it is an empty one.
        whole = marked if self.has_chat_format else [self.processor.tokenizer.eos_token] * len(marked)
        rows = [Rendered(start, text, ()) for start, text in zip(marked, whole, strict=True)]
        return Collate(self.processor).encode(rows, shown)

    @property
    def picture(self) -> str:
        """What the family's chat format writes for a picture."""
        return QWEN_PICTURE if "Qwen" in type(self.processor).__name__ else str(self.processor.image_token)


def text_config(processor: Any, kind: Any = None, **more: Any) -> Any:
    """The LLM's sizes, with the tokenizer's ids."""
    text = processor.tokenizer
    ids = {"pad_token_id": text.pad_token_id, "eos_token_id": text.eos_token_id, "bos_token_id": text.bos_token_id}
    settings = {**TEXT, **ids, **more}
    return settings if kind is None else kind(**settings)


def token_id(processor: Any, token: str) -> int:
    """Of a token that the tokenizer has."""
    found = processor.tokenizer.convert_tokens_to_ids(token)
    assert found is not None, token
    return int(found)


def with_video(kind: str, *parts: Any, **more: Any) -> Any:
    """A processor that would take videos, too."""
    make = getattr(hf, kind)
    with patch.object(make, "check_argument_for_proper_class", lambda self, name, argument: None):
        return make(*parts, BaseVideoProcessor(), **more)


# ---- LLaVA -----------------------------------------------------------------------------------------------------------


def llama_tokenizer(*more: str) -> Any:
    return tokenizer(
        ["<unk>", "<s>", "</s>", "<pad>", "<image>", *more],
        pad="<pad>", eos="</s>", bos="<s>", adds_bos=True, named={"image_token": "<image>"},
    )  # fmt: skip


def clip_images() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE)


def llava_processor(template: str) -> Any:
    return hf.LlavaProcessor(
        clip_images(), llama_tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=template,
    )  # fmt: skip


def llava() -> Bed:
    def build(p: Any) -> Any:
        return hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(
                vision_config=hf.CLIPVisionConfig(**VISION),
                text_config=text_config(p, hf.LlamaConfig),
                image_token_index=p.image_token_id,
            )
        )

    return Bed(llava_processor(formats.LLAVA), build, ends_open=True)


def llava_vicuna() -> Bed:
    """LLaVA in the format of composed backbones, which ends every turn."""
    made = llava()
    return Bed(llava_processor(formats.VICUNA), made.build)


def vipllava() -> Bed:
    def build(p: Any) -> Any:
        return hf.VipLlavaForConditionalGeneration(
            hf.VipLlavaConfig(
                vision_config=hf.CLIPVisionConfig(**VISION),
                text_config=text_config(p, hf.LlamaConfig),
                image_token_index=p.image_token_id,
                vision_feature_layers=[-2, -1],
            )
        )

    return Bed(llava_processor(formats.VIPLLAVA), build, ends_open=True)


def llava_next() -> Bed:
    images = LlavaNextImageProcessorPil(size={"shortest_edge": 32}, crop_size=SIZE, image_grid_pinpoints=GRID)
    processor = hf.LlavaNextProcessor(
        images, llama_tokenizer(), patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=formats.LLAVA,
    )  # fmt: skip

    def build(p: Any) -> Any:
        return hf.LlavaNextForConditionalGeneration(
            hf.LlavaNextConfig(
                vision_config=hf.CLIPVisionConfig(**VISION),
                text_config=text_config(p, hf.LlamaConfig),
                image_token_index=p.image_token_id,
                image_grid_pinpoints=GRID,
            )
        )

    return Bed(processor, build, ends_open=True)


# ---- Qwen's tokens ---------------------------------------------------------------------------------------------------


def qwen_tokenizer(named: dict[str, str]) -> Any:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values()]
    return tokenizer(list(dict.fromkeys(special)), pad="<|endoftext|>", eos="<|im_end|>", named=named, nfc=True)


def llava_onevision() -> Bed:
    images = LlavaOnevisionImageProcessorPil(size=SIZE, image_grid_pinpoints=GRID)
    text = qwen_tokenizer({"image_token": "<image>", "video_token": "<video>"})
    processor = with_video(
        "LlavaOnevisionProcessor", images, text, num_image_tokens=16, vision_feature_select_strategy="full",
        chat_template=formats.ONEVISION, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip

    def build(p: Any) -> Any:
        return hf.LlavaOnevisionForConditionalGeneration(
            hf.LlavaOnevisionConfig(
                vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
                text_config=text_config(p, hf.Qwen2Config),
                image_token_index=token_id(p, "<image>"),
                video_token_index=token_id(p, "<video>"),
                image_grid_pinpoints=GRID,
                vision_aspect_ratio="anyres_max_9",
            )
        )

    return Bed(processor, build, loose_header=True)


QWEN_NAMES = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
}
QWEN_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
QWEN_VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_size": 32,
    "num_heads": 4,
    "patch_size": 8,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}


def qwen(kind: str, template: str, vision: dict[str, Any], rope: dict[str, Any]) -> Bed:
    images = Qwen2VLImageProcessorPil(
        patch_size=8, temporal_patch_size=2, merge_size=2, size={"shortest_edge": 256, "longest_edge": 4096}
    )
    processor = with_video(f"{kind}Processor", images, qwen_tokenizer(QWEN_NAMES), chat_template=template)

    def build(p: Any) -> Any:
        ids = {f"{name}_id": token_id(p, token) for name, token in QWEN_NAMES.items()}
        config = getattr(hf, f"{kind}Config")(
            text_config=text_config(p, rope_parameters=rope), vision_config={**QWEN_VISION, **vision}, **ids
        )
        return getattr(hf, f"{kind}ForConditionalGeneration")(config)

    return Bed(processor, build)


SYSTEM = "You are a helpful assistant."


def qwen2_vl() -> Bed:
    return qwen("Qwen2VL", formats.chatml(QWEN_PICTURE, SYSTEM), {"embed_dim": 32, "mlp_ratio": 2}, MROPE)


def qwen2_5_vl() -> Bed:
    vision = {"out_hidden_size": 32, "intermediate_size": 64, "window_size": 32, "fullatt_block_indexes": [1]}
    return qwen("Qwen2_5_VL", formats.chatml(QWEN_PICTURE, SYSTEM), vision, MROPE)


def qwen3_vl() -> Bed:
    vision = {
        "out_hidden_size": 32,
        "intermediate_size": 64,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    }
    return qwen("Qwen3VL", formats.chatml(QWEN_PICTURE), vision, {**MROPE, "mrope_interleaved": True})


def internvl(tiled: bool) -> Bed:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    # The processor asks for tiles itself, so that their number alone can say that there are none.
    images = GotOcr2ImageProcessorPil(size=SIZE, min_patches=1, max_patches=4 if tiled else 1)
    processor = with_video(
        "InternVLProcessor", images, qwen_tokenizer(names), image_seq_length=4,
        chat_template=formats.chatml("<IMG_CONTEXT>\\n"),
    )  # fmt: skip

    def build(p: Any) -> Any:
        return hf.InternVLForConditionalGeneration(
            hf.InternVLConfig(
                vision_config={**VISION, "image_size": [32, 32], "patch_size": [8, 8]},
                text_config=text_config(p, hf.Qwen2Config),
                image_token_id=token_id(p, "<IMG_CONTEXT>"),
                image_seq_length=4,
            )
        )

    return Bed(processor, build)


# ---- Idefics ---------------------------------------------------------------------------------------------------------


def idefics(kind: str, images: Any) -> Bed:
    cells = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
    named = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "global_image_token": "<global-img>",
        "end_of_utterance_token": "<end_of_utterance>",
    }
    text = tokenizer(
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *named.values(), *cells],
        pad="<|im_end|>", eos="<end_of_utterance>", bos="<|im_start|>", named=named,
    )  # fmt: skip
    settings: dict[str, Any] = {"image_seq_len": 4, "chat_template": formats.IDEFICS}
    if kind == "SmolVLM":
        processor = with_video("SmolVLMProcessor", images, text, **settings)
    else:
        processor = hf.Idefics3Processor(images, text, **settings)

    def build(p: Any) -> Any:
        vision = {**VISION, "model_type": "idefics3_vision"} if kind == "Idefics3" else VISION
        config = getattr(hf, f"{kind}Config")(
            vision_config=vision,
            text_config=text_config(p, hf.LlamaConfig),
            image_token_id=token_id(p, "<image>"),
            scale_factor=2,
            pad_token_id=p.tokenizer.pad_token_id,
        )
        return getattr(hf, f"{kind}ForConditionalGeneration")(config)

    return Bed(processor, build)


def idefics_images(kind: Any, longest: int, split: bool) -> Any:
    return kind(size={"longest_edge": longest}, max_image_size={"longest_edge": 32}, do_image_splitting=split)


# ---- Gemma, Mistral --------------------------------------------------------------------------------------------------


def gemma3() -> Bed:
    names = {"image_token": "<image_soft_token>", "boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    text = tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>", *names.values()],
        pad="<pad>", eos="<eos>", bos="<bos>", adds_bos=True, named=names,
        unlisted=("<start_of_turn>", "<end_of_turn>"),
    )  # fmt: skip
    images = Gemma3ImageProcessorPil(size=SIZE, image_seq_length=4)
    processor = hf.Gemma3Processor(images, text, chat_template=formats.GEMMA, image_seq_length=4)

    def build(p: Any) -> Any:
        config = hf.Gemma3Config(
            text_config=text_config(p, hf.Gemma3TextConfig, sliding_window=512),
            vision_config=hf.SiglipVisionConfig(**VISION, vision_use_head=False),
            mm_tokens_per_image=4,
            image_token_index=token_id(p, "<image_soft_token>"),
            boi_token_index=token_id(p, "<start_of_image>"),
            eoi_token_index=token_id(p, "<end_of_image>"),
            pad_token_id=0,
        )
        model = hf.Gemma3ForConditionalGeneration(config)
        # Left at zero by its own initialisation, which would hide every picture.
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)
        return model

    return Bed(processor, build)


def paligemma2() -> Bed:
    text = tokenizer(
        ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"],
        pad="<pad>", eos="<eos>", bos="<bos>", named={"image_token": "<image>"},
    )  # fmt: skip
    images = SiglipImageProcessorPil(size=SIZE)
    images.image_seq_length = 16  # As its preprocessor_config.json says it.
    processor = hf.PaliGemmaProcessor(images, text)

    def build(p: Any) -> Any:
        config = hf.PaliGemmaConfig(
            vision_config=hf.SiglipVisionConfig(**VISION, projection_dim=32, vision_use_head=False),
            text_config=text_config(p, hf.Gemma2Config),
            image_token_index=token_id(p, "<image>"),
            projection_dim=32,
            hidden_size=32,
            pad_token_id=0,
        )
        return hf.PaliGemmaForConditionalGeneration._from_config(config, attn_implementation="eager")

    return Bed(processor, build, has_chat_format=False)


@cache
def pixtral_class() -> Any:
    """``PixtralProcessor``, its module imported without torchvision."""
    name = "transformers.models.pixtral.image_processing_pixtral"
    with patch.dict(sys.modules, {name: image_processing_pil_pixtral}):
        return import_module("transformers.models.pixtral.processing_pixtral").PixtralProcessor


def pixtral_processor(template: str, merge: int) -> Any:
    names = {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    special = ["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]", "<pad>"]
    text = tokenizer([*special, *names.values()], pad="<pad>", eos="</s>", bos="<s>", adds_bos=True, named=names)
    images = image_processing_pil_pixtral.PixtralImageProcessorPil(
        size={"longest_edge": 48}, patch_size={"height": 8 * merge, "width": 8 * merge}
    )
    return pixtral_class()(images, text, patch_size=8, spatial_merge_size=merge, chat_template=template)


def pixtral_vision() -> Any:
    return hf.PixtralVisionConfig(**{**VISION, "image_size": 64, "head_dim": 8})


def pixtral() -> Bed:
    def build(p: Any) -> Any:
        return hf.LlavaForConditionalGeneration(
            hf.LlavaConfig(
                vision_config=pixtral_vision(),
                text_config=text_config(p, hf.MistralConfig),
                image_token_index=token_id(p, "[IMG]"),
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            )
        )

    return Bed(pixtral_processor(formats.PIXTRAL, 1), build, plain_assistant=True)


def mistral3() -> Bed:
    def build(p: Any) -> Any:
        return hf.Mistral3ForConditionalGeneration(
            hf.Mistral3Config(
                vision_config=pixtral_vision(),
                text_config=text_config(p, hf.MistralConfig),
                image_token_index=token_id(p, "[IMG]"),
                spatial_merge_size=2,
            )
        )

    return Bed(pixtral_processor(formats.MISTRAL, 2), build)


BEDS: dict[str, Callable[[], Bed]] = {
    "llava": llava,
    "llava_vicuna": llava_vicuna,
    "vipllava": vipllava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "smolvlm": lambda: idefics("SmolVLM", idefics_images(SmolVLMImageProcessorPil, 64, True)),
    "smolvlm2": lambda: idefics("SmolVLM", idefics_images(SmolVLMImageProcessorPil, 32, False)),
    "idefics3": lambda: idefics("Idefics3", idefics_images(Idefics3ImageProcessorPil, 64, True)),
    "idefics3_untiled": lambda: idefics("Idefics3", idefics_images(Idefics3ImageProcessorPil, 32, False)),
    "internvl3": lambda: internvl(tiled=True),
    "internvl3_untiled": lambda: internvl(tiled=False),
    "gemma3": gemma3,
    "mistral3": mistral3,
    "pixtral": pixtral,
    "paligemma2": paligemma2,
}


@cache
def _bed(name: str) -> Bed:
    return BEDS[name]()


def bed(name: str, fresh: bool = False, seed: int = 0) -> Bed:
    """One of :data:`BEDS`, the same object each time unless it has to be fresh."""
    if not fresh and not seed:
        return _bed(name)
    made = BEDS[name]()
    made.seed = seed
    return made


def build(name: str, seed: int = 0) -> Bed:
    """A fresh one of :data:`BEDS`, whose model an adapter may be put into."""
    return bed(name, fresh=True, seed=seed)


def picture(colour: tuple[int, int, int], size: tuple[int, int] = (32, 32)) -> Image.Image:
    """A picture of one colour with a black corner, so that no feature is constant."""
    image = Image.new("RGB", size, colour)
    image.paste((0, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
    return image


def loaded(b: Bed) -> LoadedBackbone:
    """A bed as an adapter takes it."""
    return LoadedBackbone(b.model, b.processor, find_layout(b.model), identity_of(b.model), "bed")
