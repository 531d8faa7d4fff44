"""Tuning the backbone's own weights, all or some of them."""

import re
from typing import TYPE_CHECKING, Any, Literal

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.targets import Blocks, Where, block_linears, chosen_blocks
from mllm_lit.backbones.layout import Layout
from mllm_lit.backbones.quantize import refuse_if_quantized
from mllm_lit.errors import AdapterError, in_range

if TYPE_CHECKING:
    from torch import nn


class Full(Adapter):
    """Full fine-tuning with a scope.

    Args:
        blocks: Decoder blocks to train: the last so many, a list of indices, ``all`` for the whole LLM with its
            embeddings, final norm and head, ``0`` for none.
        where: Of the blocks, train the linear layers of the attention, of the MLP, its gate and up projections
            (``gate_up``), or ``both``, and neither norms nor what is outside of blocks (arXiv 2510.08564); ``None``
            for all of the above.
        vision_from: Train the vision encoder's blocks from this index on; ``0`` for all of it.
        only: Of the above, train the norms or the biases only (BitFit, arXiv 2106.10199).
        lr: Learning rate of the LLM.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`; ``connector: lora`` is refused.
    """

    def __init__(
        self,
        blocks: Blocks = "all",
        where: Where | None = None,
        vision_from: int | None = None,
        only: Literal["norms", "biases"] | None = None,
        lr: float = 2e-5,
        **shared: Any,
    ) -> None:
        super().__init__(lr=lr, **shared)
        if self.connector == "lora":
            raise AdapterError("connector: lora needs the lora adapter; full tuning takes frozen or tuned.")
        self.blocks: Blocks = blocks
        self.where: Where | None = where
        self.vision_from = in_range("adapter.vision_from", vision_from, 0)
        self.only = only

    def names_to_open(self, model: "nn.Module", layout: Layout) -> list[str]:
        """See :meth:`Adapter.names_to_open`."""
        refuse_if_quantized(model, "Full tuning")
        wanted = set(chosen_blocks(layout, model, self.blocks))
        linears = None if self.where is None else block_linears(model, layout, self.where, self.blocks)
        names = []
        for name, _ in model.named_parameters():
            role = layout.role_of(name)
            in_llm = role == "llm" and (self.blocks == "all" or layout.block_of(name) in wanted)
            if linears is not None:
                in_llm = name.rpartition(".")[0] in linears
            if in_llm or (role == "vision" and self._in_vision(name)):
                names.append(name)
        kept = [name for name in names if self._kept(model, name)]
        if names and not kept:
            raise AdapterError(f"only: {self.only}, but there are none where blocks and vision_from point.")
        return kept

    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """Nothing is added; see :meth:`Adapter.wrap`."""
        return model

    def _in_vision(self, name: str) -> bool:
        if self.vision_from is None:
            return False
        index = re.search(r"\.(\d+)\.", name)
        return self.vision_from == 0 or (index is not None and int(index[1]) >= self.vision_from)

    def _kept(self, model: "nn.Module", name: str) -> bool:
        if self.only is None:
            return True
        if self.only == "biases":
            return name.endswith(".bias")
        return "norm" in type(model.get_submodule(name.rpartition(".")[0])).__name__.lower()
