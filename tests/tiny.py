"""A LLaVA small enough to build in a test: CLIP vision, Llama, a BPE tokenizer trained here, and its processor."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

IMAGE_SIZE = 32
PATCH_SIZE = 16
SPECIAL_TOKENS = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
CORPUS = (
    "a chat between a curious user and an artificial intelligence assistant. USER: ASSISTANT:",
    "what colour is the square? red green blue yellow black white",
    "how many shapes are there? zero one two three four five",
    "answer the question using a single word or phrase. yes no left right A. B. C. D.",
)
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ {'user': 'USER: ', 'assistant': 'ASSISTANT: ', 'system': ''}[message['role']] }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    "{{ {'user': ' ', 'assistant': eos_token, 'system': ' '}[message['role']] }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)


def tiny_tokenizer(markers: dict[str, str] | None = None) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most 512 entries, and those of ``markers``, that can spell any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=SPECIAL_TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": "<image>", **(markers or {})},
        padding_side="left",
        model_max_length=256,
    )


def tiny_processor() -> LlavaProcessor:
    """Four image tokens an image (2 x 2 patches, the CLS token dropped)."""
    size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=size, crop_size=size, do_center_crop=False),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_config(vocab_size: int = 512, image_token_id: int = SPECIAL_TOKENS.index("<image>")) -> LlavaConfig:
    """Two blocks each of vision and LLM, width 32."""
    shape: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    shape["num_attention_heads"] = 4
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**shape, image_size=IMAGE_SIZE, patch_size=PATCH_SIZE, projection_dim=32),
        text_config=LlamaConfig(
            **shape,
            num_key_value_heads=2,
            vocab_size=vocab_size,
            max_position_embeddings=256,
            pad_token_id=0,
            bos_token_id=2,
            eos_token_id=3,
        ),
        image_token_index=image_token_id,
        image_seq_length=(IMAGE_SIZE // PATCH_SIZE) ** 2,
        vision_feature_layer=-2,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
    )


def tiny_backbone(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """A random model in eval mode and its processor; the global random state is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(tiny_config())
    return model.eval(), tiny_processor()


def save_tiny(folder: Path, seed: int = 0) -> Path:
    """Write :func:`tiny_backbone` as a Hugging Face folder and return the folder."""
    model, processor = tiny_backbone(seed)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)
