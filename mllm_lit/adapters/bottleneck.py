"""Bottleneck adapters (arXiv 1902.00751) where the PEFT study puts them (arXiv 2406.05130)."""

from typing import TYPE_CHECKING, Any, Literal

from mllm_lit.adapters.peft import PeftAdapter
from mllm_lit.adapters.targets import OUTPUTS, Blocks, Where, block_linears, pattern
from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import in_range

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn


class Bottleneck(PeftAdapter):
    """Two small matrices with a non-linearity between them, on linear layers of the LLM.

    Args:
        size: Width of the bottleneck.
        where: Linear layers of the attention, of the MLP, or both.
        blocks: ``all``, the last so many, or a list of indices.
        placement: ``series`` adapts the input of layers that read the residual stream (gate, up, q, k, v) and the
            output of those that write to it (down, o); ``parallel`` adds to every layer's output what is computed
            from its input.
        non_linearity: Any activation that transformers knows by name.
        dropout: On the bottleneck's input.
        scale: Factor of what is added.
        learn_scale: Train that factor.
        init: ``zero`` leaves the backbone as it is at the start; ``normal`` is what the study's code did.
        lr: Learning rate of the adapter.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    adds_computations = True

    def __init__(
        self,
        size: int = 256,
        where: Where = "mlp",
        blocks: Blocks = "all",
        placement: Literal["series", "parallel"] = "series",
        non_linearity: str = "tanh",
        dropout: float = 0.05,
        scale: float = 1.0,
        learn_scale: bool = False,
        init: Literal["zero", "normal"] = "zero",
        lr: float = 5e-5,
        **shared: Any,
    ) -> None:
        super().__init__(lr=lr, **shared)
        self.size = in_range("adapter.size", size, 1)
        self.where: Where = where
        self.blocks: Blocks = blocks
        self.placement = placement
        self.non_linearity = non_linearity
        self.dropout = in_range("adapter.dropout", dropout, 0, below=1)
        self.scale = in_range("adapter.scale", scale)
        self.learn_scale = learn_scale
        self.init: Literal["zero", "normal"] = init
        self.exact_at_attach = init == "zero"

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from mllm_lit.adapters.bottleneck_tuner import BottleneckConfig

        names = block_linears(model, layout, self.where, self.blocks)
        after = [name for name in names if name.rpartition(".")[2] in OUTPUTS]
        return BottleneckConfig(
            target_modules=pattern(names),
            after_modules=pattern(after) if after else None,
            parallel=self.placement == "parallel",
            size=self.size,
            non_linearity=self.non_linearity,
            dropout=self.dropout,
            scale=self.scale,
            learn_scale=self.learn_scale,
            init=self.init,
        )
