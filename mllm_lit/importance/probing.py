"""Text that a model writes about nothing in particular: probes that need no data."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mllm_lit.importance.seeding import generator


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode while open; then every module is back in its own (a frozen part may be in eval mode in training)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def self_generated(
    model: nn.Module,
    prompts: int,
    batch_size: int = 4,
    length: int = 64,
    temperature: float = 0.9,
    top_p: float = 0.9,
    repetition_penalty: float = 1.05,
    seed: int | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Iterator[Tensor]:
    """Sample texts from BOS and one to five random tokens (Model-Dowser, arXiv 2602.04509; defaults are its own).

    Args:
        model: A Hugging Face model with ``generate``; its modes and the global random state are left as they were.
        prompts: Number of texts.
        length: Tokens of each, BOS and random ones included. Ends of text are suppressed, so no text is padded.
        seed: ``None`` takes the run's seed.
        context: Made and entered around generation: autocast, where weights have several dtypes.

    Yields:
        Token ids, (at most ``batch_size``, ``length``).
    """
    hf: Any = model
    random = generator(seed, "probes")
    device = next(model.parameters()).device
    bos, special = _special_tokens(hf)
    allowed = torch.ones(hf.get_input_embeddings().num_embeddings, dtype=torch.bool)
    allowed[special] = False
    vocabulary = allowed.nonzero().flatten()
    for start in range(0, prompts, batch_size):
        rows = min(batch_size, prompts - start)
        given = int(torch.randint(1, 6, (), generator=random))
        words = vocabulary[torch.randint(len(vocabulary), (rows, given), generator=random)]
        tokens = torch.cat((torch.full((rows, 1), bos), words), dim=1).to(device)
        forked = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
        with forked, evaluating(model), torch.no_grad(), context():
            torch.manual_seed(int(torch.randint(2**31, (), generator=random)))
            written = hf.generate(
                input_ids=tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                temperature=temperature,
                top_p=top_p,
                top_k=0,
                repetition_penalty=repetition_penalty,
                min_length=length,
                max_length=length,
                suppress_tokens=special,
                pad_token_id=bos,
            )
        yield written


def _special_tokens(model: Any) -> tuple[int, list[int]]:
    """BOS (or whatever starts a text) and the ids that no probe may hold: ends of text and images."""
    text = model.config.get_text_config()
    ids: list[int] = []
    for owner in (model.generation_config, text, model.config):
        for key in (
            "eos_token_id",
            "pad_token_id",
            "bos_token_id",
            "image_token_id",
            "image_token_index",
            "video_token_id",
        ):
            value = getattr(owner, key, None)
            ids += value if isinstance(value, list) else [] if value is None else [value]
    bos = text.bos_token_id if text.bos_token_id is not None else (ids[0] if ids else 0)
    size = model.get_input_embeddings().num_embeddings
    return bos, sorted({token for token in ids if 0 <= token < size})
