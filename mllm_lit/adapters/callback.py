"""Shows an adapter text or rows ahead of the first step, where it begins from what the model's layers read."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from mllm_lit.adapters.subspace import in_parts, input_products, low_rank_layers
from mllm_lit.data.sample import Sample
from mllm_lit.errors import AdapterError
from mllm_lit.importance.callback import in_turns, training_rows
from mllm_lit.importance.probing import evaluating, self_generated
from mllm_lit.progress import progress_bar
from mllm_lit.seed import Stream, stream_seed

LENGTH = 64
"""Tokens of a text that the model writes."""


class AdapterCallback(L.Callback):
    """Glue for ``model.adapter.init``; stands ahead of everything that evaluates or attaches to what trains."""

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse strategies that have taken the weights apart by then.

        Raises:
            AdapterError: Naming those to take instead.
        """
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy)):
            raise AdapterError(
                f"adapter.init: {pl_module.adapter.init} changes weights right before training, which "
                f"{type(trainer.strategy).__name__} has taken apart by then. Use one device, or DDP."
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Initialise; a resumed run has it from its checkpoint.

        Raises:
            AdapterError: The run's sources have too few rows, or see :meth:`Adapter.initialise`.
        """
        adapter, net, world = pl_module.adapter, pl_module.net, trainer.world_size
        if adapter.initial_state():
            return
        own = looked_at(trainer, pl_module)[trainer.global_rank :: world]
        hidden = trainer.progress_bar_callback is None or not trainer.is_global_zero
        parts = list(in_parts(low_rank_layers(net)))
        bar = progress_bar(
            total=len(parts) * len(own), desc=f"before training · {adapter.init}", unit=" inputs", disable=hidden
        )
        for part in parts:
            with input_products(part) as products, evaluating(net), torch.no_grad():
                for shown in own:
                    with trainer.precision_plugin.forward_context():
                        net(**inputs_of(pl_module, shown), use_cache=False, logits_to_keep=1)
                    bar.update()
            for total in products.values() if world > 1 else ():
                torch.distributed.all_reduce(total)
            adapter.initialise(net, products)
        bar.close()
        what = "texts of the model's own" if adapter.init_from == "generated" else "rows of the sources' train splits"
        rank_zero_info(f"{adapter.init}: low-rank updates begin where layers read least of {adapter.init_rows} {what}.")


def looked_at(trainer: L.Trainer, module: Any) -> Sequence[Tensor | Sample]:
    """What an adapter is shown, texts (tokens,) or rows; the same on every rank.

    Raises:
        AdapterError: The sources have too few rows.
    """
    adapter, seed = module.adapter, stream_seed(Stream.ADAPTER_INPUTS)
    if adapter.init_from == "generated":
        context = trainer.precision_plugin.forward_context
        texts = self_generated(module.loaded.model, adapter.init_rows, length=LENGTH, seed=seed, context=context)
        return [text for part in texts for text in part]
    rows = source_rows(trainer.datamodule, seed)  # type: ignore[attr-defined]
    if len(rows) < adapter.init_rows:
        raise AdapterError(
            f"adapter.init_rows is {adapter.init_rows}, but the sources' train splits have {len(rows)} rows together. "
            "Give fewer, or sources (data.sources), or set adapter.init_from: generated."
        )
    return rows[: adapter.init_rows]


def inputs_of(module: Any, shown: Tensor | Sample) -> Mapping[str, Any]:
    """The model's inputs of one text or row, on its device; alone, so that nothing is padded."""
    if isinstance(shown, Sample):
        inputs: Mapping[str, Any] = module.collate([shown]).to(module.device).inputs
        return inputs
    return {"input_ids": shown[None], "attention_mask": torch.ones_like(shown[None])}


def source_rows(data: Any, seed: int) -> list[Sample]:
    """Rows of the sources' train splits, in turns."""
    return in_turns(training_rows(data.named(None, "data.sources").values()), seed)
