"""What a multimodal LLM says of a batch: how likely the true answers are, and the answers it gives itself."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.layout import bare_model
from mllm_lit.backbones.pictures import encoded_once
from mllm_lit.backbones.pictures.shared import in_front
from mllm_lit.data.collate import IGNORE, Batch, Collate
from mllm_lit.errors import SettingError
from mllm_lit.packed_rows import packed_inputs


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


def answer_nll(net: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Negative log-likelihood of the answers, in nats.

    Logits are computed where an answer's token is predicted, and nowhere else.

    Args:
        net: A Hugging Face image-text-to-text model, with or without an adapter.
        batch: On the model's device.

    Returns:
        Sum of the NLL over each row's answer tokens, (B,), and the number of those tokens, (B,).

    Raises:
        SettingError: The vision encoder's features do not fit the image tokens of the text.
    """
    nll = labelled_outputs(net, batch, lambda logits, ids: token_nll(logits, ids)[:, None]).flatten()
    return by_row(batch, nll), batch.labelled.counts


def by_row(batch: Batch, values: Tensor) -> Tensor:
    """Sums over each row's answer tokens, (B,), of a value for each token, (N,)."""
    labelled = batch.labelled
    return values.new_zeros(len(labelled.counts)).index_add(0, labelled.rows, values)


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """NLL of each token in nats, fp32, 0 where the target is ``IGNORE``.

    Args:
        logits: (..., V).
        targets: (...).
    """
    flat = logits.flatten(0, -2).float()
    return nn.functional.cross_entropy(flat, targets.flatten(), ignore_index=IGNORE, reduction="none").view_as(targets)


HELD_LOGITS = 2**25
"""So many logits are held at once, 128 MiB in fp32; those of more tokens are computed part by part, and again in the
backward pass."""


def labelled_outputs(
    net: nn.Module, batch: Batch, measure: Callable[..., Tensor], columns: Sequence[Tensor] = ()
) -> Tensor:
    """What is asked of the logits of each labelled token, (N, C); not all of them are held at once.

    Args:
        net: As for :func:`answer_nll`.
        batch: Likewise.
        measure: From logits (n, V), the tokens' ids (n,) and the columns of the same tokens to (n, C).
        columns: (N, ...) each, in the order of :attr:`Batch.labelled`.

    Raises:
        SettingError: See :func:`answer_nll`.
    """
    model, given = bare_model(net), (batch.labelled.ids, *columns)
    at_once = max(1, HELD_LOGITS // model.config.get_text_config().vocab_size)
    if len(given[0]) > at_once:
        held, found = _head_replaced(net, batch, lambda head, hidden: _in_parts(head, hidden, measure, given, at_once))
        if held is found:
            return found[0]
        # The model does something to its logits (a cap, a scale), so it has to be given all of them.
    logits, _ = _head_replaced(net, batch, lambda head, hidden: head(hidden))
    return measure(logits[0], *given)


def _in_parts(
    head: Callable[[Tensor], Tensor],
    hidden: Tensor,
    measure: Callable[..., Tensor],
    columns: Sequence[Tensor],
    at_once: int,
) -> Tensor:
    """What is asked of the logits, from the hidden states that predict the tokens, (1, N, d) -> (1, N, C)."""

    def part(states: Tensor, *own: Tensor) -> Tensor:
        return measure(head(states), *own)

    parts = zip(*(torch.split(one, at_once) for one in (hidden[0], *columns)), strict=True)
    return torch.cat([checkpoint(part, *one, use_reentrant=False) for one in parts])[None]


def _head_replaced(
    net: nn.Module, batch: Batch, instead: Callable[[Callable[[Tensor], Tensor], Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """A forward pass whose head sees the labelled positions alone.

    Args:
        net: The model.
        batch: Its inputs.
        instead: Is called with the head and the hidden states of these positions, (1, N, d).

    Returns:
        What the model returns as its logits, and what ``instead`` has returned.
    """
    inputs, model = dict(batch.inputs), bare_model(net)
    if batch.packing is not None:
        inputs |= packed_inputs(model, batch)
    elif "position_ids" in inspect.signature(model.forward).parameters:
        positions = family_of(model).position_ids(inputs["attention_mask"])
        inputs |= {} if positions is None else {"position_ids": positions}
    length = batch.labels.shape[1]
    given: list[Tensor] = []

    def labelled_only(head: Callable[[Tensor], Tensor], hidden: Tensor) -> Tensor:
        # Virtual tokens may lie ahead.
        given.append(instead(head, hidden[:, -length:].flatten(0, 1)[None, batch.labelled.places]))
        return given[0]

    give_back = in_front(model.get_output_embeddings(), "forward", labelled_only)
    try:
        with encoded_once(model, batch.pictures):
            logits: Tensor = net(**inputs, use_cache=False).logits
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
    finally:
        give_back()
    return logits, given[0]


def greedy_answers(
    net: nn.Module, collate: Collate, batch: Batch, max_new_tokens: int, in_step: bool = False
) -> list[str]:
    """Generated answers, stripped, one a row; arguments as for :func:`greedy_answers_and_ends`."""
    return greedy_answers_and_ends(net, collate, batch, max_new_tokens, in_step)[0]


def greedy_answers_and_ends(
    net: nn.Module, collate: Collate, batch: Batch, max_new_tokens: int, in_step: bool = False
) -> tuple[list[str], list[bool]]:
    """Generated answers, stripped, one a row, and whether each has come to an end of its own.

    Args:
        net: The model.
        collate: The collator that has built the batch.
        batch: With prompts, on the model's device.
        max_new_tokens: Longest answer.
        in_step: All ranks have to run the same number of forward passes (sharded weights).
    """
    if batch.prompt is None:
        raise ValueError("This batch has no prompts to continue: build it with Collate(..., with_prompt=True).")
    stops = collate.format.stop_ids(bare_model(net).generation_config)
    out = net.generate(  # type: ignore[operator]
        **batch.prompt,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=stops,
        synced_gpus=in_step,
    )
    new = out[:, batch.prompt["input_ids"].shape[1] :]
    texts = [text.strip() for text in collate.processor.batch_decode(new, skip_special_tokens=True)]
    return texts, [any(token in stops for token in row) for row in new.tolist()]


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
