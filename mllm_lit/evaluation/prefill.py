"""One prefill per picture: rows that show the same picture start from one cache, their NLL and their answer, too."""

from copy import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicSlidingWindowLayer

from mllm_lit.answers import Answers, answers_of_whole_rows, token_nll
from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.layout import bare_model
from mllm_lit.backbones.pictures import encoded_once
from mllm_lit.data.collate import IGNORE, Collate
from mllm_lit.evaluation.roomy_cache import roomy_cache
from mllm_lit.evaluation.shared_rows import SharedBatch, SharedCollate
from mllm_lit.packed_rows import why_rows_stay_alone

__all__ = ["SharedBatch", "SharedCollate", "answers_from_shared_pictures", "shares_pictures"]


def shares_pictures(net: nn.Module, collate: Collate) -> bool:
    """Whether the rows of a model may start from what others have computed for the same pictures.

    They may not where pictures and prompt see each other in both directions (PaliGemma), behind virtual tokens, if
    answers are not searched greedily, and where it is not known: a family, a kind of cache or positions, a method of
    peft that is not named here, a processor that does not tell what it writes for a picture.
    """
    return why_rows_stay_alone(net, collate, in_training=False) is None and _greedy(bare_model(net).generation_config)


def _greedy(config: Any) -> bool:
    asked = copy(config)
    asked.do_sample = False
    plain = (config.num_return_sequences or 1) == 1 and (config.guidance_scale or 1) == 1
    return plain and str(asked.get_generation_mode().value) == "greedy_search" and not config.prefill_chunk_size


@torch.no_grad()
def answers_from_shared_pictures(
    net: nn.Module, collate: Collate, batch: SharedBatch, max_new_tokens: int, in_step: bool = False
) -> Answers:
    """Generate an answer to every row, and measure the NLL of the true one, from one prefill of each prefix.

    The model is called once on the prefixes, once on the rests with their true answers, and by ``generate``, which
    alone may call it more or less often (and has ranks in step wait for each other), whatever the batch holds. Where
    padding would move a sliding window (rows longer than it is), rows are run as a whole; ranks in step do so
    always, because a row of theirs may be that long.

    Args: as for :func:`mllm_lit.answers.greedy_answers`; the batch is from :class:`SharedCollate`.
    """
    model = bare_model(net)
    start = batch.prefixes["attention_mask"].shape[1]
    longest = max(start + batch.rest.shape[1], batch.prompt.shape[1] + max_new_tokens)
    cache = roomy_cache(model.config, longest - start)
    windows = [layer.sliding_window for layer in cache.layers if isinstance(layer, DynamicSlidingWindowLayer)]
    if windows and (in_step or longest >= min(windows)):
        plain = Collate(collate.processor, collate.max_length, with_prompt=True)
        whole = plain(batch.samples).to(batch.rest.device)
        return answers_of_whole_rows(net, plain, whole, max_new_tokens, in_step)

    mask, (positions, shift) = batch.prefixes["attention_mask"], _start(model, batch.prefixes)
    with encoded_once(model, batch.pictures):
        net(**batch.prefixes, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1)
    if len(batch.group) != len(mask):
        cache.batch_select_indices(batch.group)
    shift = None if shift is None else shift[batch.group]

    seen = torch.cat([mask[batch.group], batch.rest_mask], 1)
    span = batch.labels.shape[1] - int((batch.labels != IGNORE).any(0).nonzero().min())
    logits = net(
        input_ids=batch.rest,
        attention_mask=seen,
        position_ids=_positions(model, seen, shift)[..., start:],
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=span + 1,
    ).logits[:, -span - 1 : -1]
    nll = token_nll(logits, batch.labels[:, -span:]).sum(1)
    del logits
    cache.crop(-batch.answer)

    end = batch.end_mask.shape[1]
    seen = torch.cat([seen[:, : -batch.answer], batch.end_mask], 1)
    out = net.generate(  # type: ignore[operator]
        input_ids=batch.prompt,
        attention_mask=seen,
        position_ids=_positions(model, seen, shift)[..., -end:],
        past_key_values=cache,
        cache_implementation=None,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=collate.format.stop_ids(model.generation_config),
        synced_gpus=in_step,
    )[:, batch.prompt.shape[1] :]
    texts = [text.strip() for text in collate.processor.batch_decode(out, skip_special_tokens=True)]
    return Answers(texts, nll.tolist(), (batch.labels != IGNORE).sum(1).tolist())


def _start(model: Any, prefixes: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Positions of the prefixes, (G, P) or in time and space (3, G, P), and by how much those behind move, (G, 1)."""
    mask = prefixes["attention_mask"]
    if not family_of(model).spatial_positions:
        return _positions(model, mask, None), None
    if "image_grid_thw" not in prefixes:
        none = torch.zeros_like(mask[:, :1])
        return _positions(model, mask, none), none
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, shift = model.model.get_rope_index(**{name: prefixes[name] for name in names})
    return positions, shift


def _positions(model: Any, mask: Tensor, shift: Tensor | None) -> Tensor:
    """Positions of text with padding anywhere."""
    if shift is None:
        positions: Tensor = family_of(model).position_ids(mask)  # type: ignore[assignment]
        return positions
    return ((mask.cumsum(1) - 1).clamp(min=0) + shift).expand(3, -1, -1)
