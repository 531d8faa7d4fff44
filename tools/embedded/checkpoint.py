"""Assembles the small LLaVA, its tokenizer and its processor, and writes them as a Hugging Face folder."""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from embedded.vision import SIDE_SEEN, TOKENS
from mllm_lit.backbones.efficientnet_lite import EfficientNetLiteModel

VOCABULARY = 2048
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>")
CONTEXT = 1024

# Pictures come first in a turn, then its text, as LLaVA-1.5 was trained; strings are accepted in place of lists.
TEMPLATE = """\
{%- for message in messages -%}
{%- if message['content'] is string -%}
{%- set text = message['content'] -%}
{%- set images = 0 -%}
{%- else -%}
{%- set text = message['content'] | selectattr('type', 'equalto', 'text') | map(attribute='text') | join('\\n') -%}
{%- set images = message['content'] | selectattr('type', 'equalto', 'image') | list | length -%}
{%- endif -%}
{%- if message['role'] == 'assistant' -%}
{{- 'ASSISTANT: ' -}}{%- generation -%}{{- text + eos_token -}}{%- endgeneration -%}
{%- elif message['role'] == 'user' -%}
{{- 'USER: ' + '<image>\\n' * images + text + ' ' -}}
{%- else -%}
{{- text + ' ' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- 'ASSISTANT:' -}}
{%- endif -%}
"""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of 2,048 entries."""
    tokenizer = Tokenizer(models.BPE())
    # "A.dog" reads as "A. dog": a word among the choices is then the token that it is in the question.
    tokenizer.normalizer = normalizers.Replace(Regex(r"\.(?=[A-Za-z])"), ". ")
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        extra_special_tokens={"image_token": "<image>"},
        padding_side="left",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """Pictures to 128 x 128 pixels in [-1, 1], 16 tokens each."""
    images = CLIPImageProcessorPil(
        size={"height": SIDE_SEEN, "width": SIDE_SEEN},
        do_center_crop=False,
        crop_size={"height": SIDE_SEEN, "width": SIDE_SEEN},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=SIDE_SEEN // 4,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        chat_template=TEMPLATE,
    )


def make_model(vision: EfficientNetLiteModel, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    """The given encoder under an untrained connector and Llama."""
    text = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=text,
        image_token_index=SPECIAL.index("<image>"),
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=TOKENS,
        tie_word_embeddings=False,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict(), strict=True)
    model.generation_config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        max_new_tokens=32,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return model


def save(folder: Path, model: LlavaForConditionalGeneration, processor: LlavaProcessor) -> None:
    """Write weights in bf16 and everything else that ``from_pretrained`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {
        name: tensor.detach().to(torch.bfloat16)
        for name, tensor in model.state_dict().items()
        if tensor.is_floating_point()
    }
    model.config.dtype = torch.bfloat16
    model.save_pretrained(folder, state_dict={**model.state_dict(), **state})
    processor.save_pretrained(folder)


def write_scores(folder: Path, scores: dict[str, object]) -> None:
    """Leave the measured scores beside the weights."""
    (folder / "scores.json").write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
