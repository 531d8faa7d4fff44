"""The study's IA3 and prefix tuning, prompt tuning, and every other method of peft by its own options."""

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from mllm_lit.adapters.peft import PeftAdapter
from mllm_lit.adapters.targets import OUTPUTS, Blocks, Where, block_linears, pattern
from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import AdapterError, in_range

if TYPE_CHECKING:
    from peft import PeftConfig
    from torch import nn

KEYS_AND_VALUES = {"k_proj", "v_proj", "key", "value", "wk", "wv"}


class IA3(PeftAdapter):
    """Learned scales on keys, values and the MLP's hidden activations (arXiv 2205.05638), ones at the start.

    Args:
        where: Scale keys and values (attention), the input of the MLP's last linear (mlp), or both; ``gate_up`` is
            refused.
        blocks: ``all``, the last so many, or a list of indices.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    def __init__(self, where: Where = "both", blocks: Blocks = "all", **shared: Any) -> None:
        super().__init__(**shared)
        if where == "gate_up":
            raise AdapterError(
                "adapter.where is gate_up, but IA3 scales keys, values and the input of the MLP's last linear. "
                "Set it to attention, mlp or both."
            )
        self.where: Where = where
        self.blocks: Blocks = blocks

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft import IA3Config

        attention = [] if self.where == "mlp" else self._find(model, layout, "attention", KEYS_AND_VALUES)
        mlp = [] if self.where == "attention" else self._find(model, layout, "mlp", OUTPUTS)
        return IA3Config(target_modules=pattern(attention + mlp), feedforward_modules=pattern(mlp) if mlp else [])

    def _find(self, model: "nn.Module", layout: Layout, where: Where, names: set[str]) -> list[str]:
        linears = block_linears(model, layout, where, self.blocks)
        found = [name for name in linears if name.rpartition(".")[2] in names]
        if not found:
            there = sorted({name.rpartition(".")[2] for name in linears})
            raise AdapterError(f"IA3 found none of {sorted(names)} in the {where} of this LLM, which has {there}.")
        return found


class Prefix(PeftAdapter):
    """Trained keys and values ahead of every layer's own (arXiv 2101.00190).

    Args:
        tokens: How many.
        projection: Compute them from embeddings by a two-layer MLP, as the study's released script does (1.09 B
            parameters on 7B); its table counts the plain ones.
        projection_size: Width of that MLP, ``None`` for the width of the LLM.
        lr: Learning rate of the prefix.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    exact_at_attach = False
    adds_computations = True

    def __init__(
        self,
        tokens: int = 20,
        projection: bool = False,
        projection_size: int | None = None,
        lr: float = 1e-5,
        **shared: Any,
    ) -> None:
        super().__init__(lr=lr, **shared)
        self.tokens = in_range("adapter.tokens", tokens, 1)
        self.projection = projection
        self.projection_size = in_range("adapter.projection_size", projection_size, 1)

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft import PrefixTuningConfig

        text = _text_config(model)
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.tokens,
            prefix_projection=self.projection,
            encoder_hidden_size=self.projection_size or text.hidden_size,
        )


class Prompt(PeftAdapter):
    """Trained embeddings ahead of the sequence (arXiv 2104.08691); logits gain as many positions in front.

    Args:
        tokens: How many.
        from_vocabulary: Start from embeddings of random tokens instead of random numbers.
        lr: Learning rate of the prompt.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    exact_at_attach = False
    adds_computations = True

    def __init__(self, tokens: int = 20, from_vocabulary: bool = True, lr: float = 1e-3, **shared: Any) -> None:
        super().__init__(lr=lr, **shared)
        self.tokens = in_range("adapter.tokens", tokens, 1)
        self.from_vocabulary = from_vocabulary
        self.extra_positions = tokens

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft import PromptTuningConfig

        text = _text_config(model)
        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.tokens,
            prompt_tuning_init="SAMPLE_VOCAB" if self.from_vocabulary else "RANDOM",
            token_dim=text.hidden_size,
            num_layers=text.num_hidden_layers,
            num_attention_heads=text.num_attention_heads,
        )


class Peft(PeftAdapter):
    """Any method of the installed peft, by name and options.

    Args:
        method: peft's name of it, such as ``VERA``, ``OFT``, ``SHIRA`` or ``LN_TUNING``.
        options: The fields of that method's config. ``target_modules`` is filled in from ``where`` and ``blocks``
            unless given.
        where: Linear layers of the attention, of the MLP, or both.
        blocks: ``all``, the last so many, or a list of indices.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    exact_at_attach = False  # most are, but it depends on the method and its options

    def __init__(
        self,
        method: str,
        options: dict[str, Any] | None = None,
        where: Where = "both",
        blocks: Blocks = "all",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.method = method
        self.options = options or {}
        self.where: Where = where
        self.blocks: Blocks = blocks

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

        known = {str(name.value): config for name, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()}
        if self.method.upper() not in known:
            raise AdapterError(f"peft has no method {self.method!r}; there are {sorted(known)}.")
        kind = known[self.method.upper()]
        names = {field.name for field in fields(kind)}
        if unknown := self.options.keys() - names:
            raise AdapterError(f"{kind.__name__} has no options {sorted(unknown)}; there are {sorted(names)}.")
        options = dict(self.options)
        if "target_modules" in names:
            options.setdefault("target_modules", pattern(block_linears(model, layout, self.where, self.blocks)))
        elif self.where != "both" or self.blocks != "all":
            raise AdapterError(
                f"adapter.where is {self.where} and adapter.blocks is {self.blocks}, but {self.method} takes no linear "
                "layers. Leave both out."
            )
        config = kind(**options)
        if config.is_prompt_learning:
            config.task_type = options.get("task_type", "CAUSAL_LM")
            self.extra_positions = 0 if self.method.upper() in ("PREFIX_TUNING", "CARTRIDGE") else _tokens(config)
        return config

    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """See :meth:`Adapter.wrap`; OSF takes weights apart in fp32.

        Factors in another type are replaced by peft with new parameters in fp32, which lack the hooks that keep their
        gradients off the frozen directions.
        """
        if self.method.upper() != "OSF":
            return super().wrap(model, layout)
        from torch import nn

        linears = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
        linears = [weight for weight in linears if weight.is_floating_point()]
        dtypes = [weight.dtype for weight in linears]
        for weight in linears:
            weight.data = weight.data.float()
        wrapped = super().wrap(model, layout)
        for weight, dtype in zip(linears, dtypes, strict=True):
            weight.data = weight.data.to(dtype)
        return wrapped


def _text_config(model: "nn.Module") -> Any:
    return model.config.get_text_config()  # type: ignore[operator, union-attr]


def _tokens(config: "PeftConfig") -> int:
    return int(getattr(config, "num_virtual_tokens", 0))
