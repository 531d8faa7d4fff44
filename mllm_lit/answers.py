"""What a multimodal LLM says of a batch: how likely the true answers are, and the answers it gives itself."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.pictures import encoded_once
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.errors import SettingError


@dataclass
class Answers:
    """Of the B rows of a batch, in their order.

    Attributes:
        texts: Generated greedily, stripped.
        nll: Of the true answer, in nats, summed over its tokens.
        tokens: The true answer's, the end of the turn among them.
    """

    texts: list[str]
    nll: list[float]
    tokens: list[int]


def bare_model(net: nn.Module) -> Any:
    """The Hugging Face model under peft's wrapper, if there is one."""
    return net.get_base_model() if hasattr(net, "get_base_model") else net  # type: ignore[operator]


def answer_nll(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the answers, in nats.

    Logits are computed from the first answer token on: padding is on the left, so answers end together.

    Args:
        net: A Hugging Face image-text-to-text model, with or without an adapter.
        batch: Of whole rows, on the model's device.

    Returns:
        Sum of the NLL over each row's answer tokens, (B,), and the number of those tokens, (B,).

    Raises:
        SettingError: The vision encoder's features do not fit the image tokens of the text.
    """
    counts = (batch.labels != IGNORE).sum(1)
    span = int((batch.labels != IGNORE).any(0).flip(0).nonzero().max()) + 1
    targets = batch.labels[:, -span:]
    nll = token_nll(_logits(net, batch, keep=span + 1)[:, :-1], targets)
    return nll.sum(1), counts


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL of each token in nats, fp32, 0 where the target is ``IGNORE``.

    Args:
        logits: (B, T, V).
        targets: (B, T).
    """
    flat = logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none").view_as(targets)


def _logits(net: nn.Module, batch: Batch, keep: int) -> Tensor:
    inputs, model = dict(batch.inputs), bare_model(net)
    if "position_ids" in inspect.signature(model.forward).parameters:
        positions = family_of(model).position_ids(inputs["attention_mask"])
        inputs |= {} if positions is None else {"position_ids": positions}
    try:
        with encoded_once(model, batch.pictures):
            logits: Tensor = net(**inputs, logits_to_keep=keep, use_cache=False).logits
    except ValueError as error:
        if "image" not in str(error).lower():
            raise
        ids = ", ".join(sample.id for sample in batch.samples[:8])
        raise SettingError(
            f"The vision encoder's features do not fit the image tokens of the text (samples {ids}): {error}. "
            "The processor and the weights disagree about image size, patch size or the CLS token; take both "
            "from the same folder, or set the processor's patch_size, num_additional_image_tokens and "
            "vision_feature_select_strategy to the vision encoder's."
        ) from error
    return logits[:, -keep:]


def greedy_answers(
    net: nn.Module, collate: Collate, batch: Batch, max_new_tokens: int, in_step: bool = False
) -> list[str]:
    """Generated answers, stripped, one a row.

    Args:
        net: The model.
        collate: The collator that has built the batch.
        batch: With prompts, on the model's device.
        max_new_tokens: Longest answer.
        in_step: All ranks have to run the same number of forward passes (sharded weights).
    """
    if batch.prompt is None:
        raise ValueError("This batch has no prompts to continue: build it with Collate(..., with_prompt=True).")
    out = net.generate(  # type: ignore[operator]
        **batch.prompt,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=collate.format.stop_ids(bare_model(net).generation_config),
        synced_gpus=in_step,
    )
    new = out[:, batch.prompt["input_ids"].shape[1] :]
    return [text.strip() for text in collate.processor.batch_decode(new, skip_special_tokens=True)]


@torch.no_grad()
def answers_of_whole_rows(
    net: nn.Module, collate: Collate, batch: Batch, max_new_tokens: int, in_step: bool = False
) -> Answers:
    """Generate an answer to every row, and measure the NLL of the true one in a pass of its own.

    Args: as for :func:`greedy_answers`.
    """
    with encoded_once(bare_model(net), batch.pictures, reuse=True):
        texts = greedy_answers(net, collate, batch, max_new_tokens, in_step)
        nll, counts = answer_nll(net, batch)
    return Answers(texts, nll.tolist(), counts.tolist())
