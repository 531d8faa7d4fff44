"""Adapters that peft provides, pointed at the right modules."""

import tempfile
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.copies import snapshot, whole
from mllm_lit.adapters.targets import Blocks, Where, block_linears, pattern, role_linears
from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.layout import Layout
from mllm_lit.errors import AdapterError, in_range

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

# Initialisations that subtract something from the weights they are added to.
MUTATING = ("pissa", "olora", "loftq")
# Initialisations that have to see data first.
DATA_DRIVEN = ("eva", "corda", "lora_ga")


class PeftAdapter(Adapter):
    """An adapter that peft implements; takes the arguments of :class:`Adapter`."""

    @abstractmethod
    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """peft's description of the adapter for this backbone."""

    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """See :meth:`Adapter.wrap`."""
        from peft import get_peft_model

        if self.connector == "lora" and not isinstance(self, LoRA):
            raise AdapterError(f"connector: lora needs the lora adapter, not {type(self).__name__}.")
        config = self.config(model, layout)
        if config.is_prompt_learning:
            self._check_virtual_tokens(model, str(getattr(config.peft_type, "value", config.peft_type)))
        wrapped = get_peft_model(cast("Any", model), config)
        # peft, too, has embeddings and patches ask for gradients when activations are recomputed.
        cast("Any", model).disable_input_require_grads()
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
        return wrapped

    def _check_virtual_tokens(self, model: "nn.Module", method: str) -> None:
        name = type(self).__name__
        if family_of(model).spatial_positions:
            raise AdapterError(
                f"{type(model).__name__} places tokens in time and space by counting those of the text, so virtual "
                f"tokens ahead of them do not fit. Use lora, bottleneck or ia3 in place of {name}."
            )
        recomputes = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
        if recomputes and method in ("PREFIX_TUNING", "CARTRIDGE"):
            raise AdapterError(
                f"{name} hands every layer keys and values, which recomputing a layer drops. "
                "Set model.backbone.gradient_checkpointing: null."
            )

    def without_new_modules(self, model: "nn.Module") -> Any:
        """See :meth:`Adapter.without_new_modules`."""
        return cast("PeftModel", model).disable_adapter()

    def save_modules(self, model: "nn.Module", folder: Path, is_main: bool) -> None:
        """peft's ``save_pretrained``, with sharded tensors gathered and the frozen ones left where they are."""
        layout = self.attached_layout()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        state = {
            name: whole(tensor)
            for name, tensor in model.state_dict().items()
            if name in trained or layout.base_name(name) not in self.bare_names
        }
        cast("PeftModel", model).save_pretrained(
            str(folder), save_embedding_layers=False, is_main_process=is_main, state_dict=state
        )


class LoRA(PeftAdapter):
    """Low-rank updates (arXiv 2106.09685), as the PEFT study configures them (arXiv 2406.05130).

    Args:
        rank: Width of the update.
        alpha: The update is scaled by ``alpha / rank`` (rsLoRA: ``alpha / sqrt(rank)``).
        dropout: On the input of the update.
        where: Linear layers of the attention, of the MLP, or both.
        blocks: ``all``, the last so many, or a list of indices.
        init: As peft's ``init_lora_weights``: ``true`` (zero at the start), ``gaussian``, ``pissa``,
            ``pissa_niter_4``, ``olora``, ``orthogonal``, ``loftq``.
        use_dora: Learn magnitude and direction apart (arXiv 2402.09353).
        use_rslora: Scale by the square root of the rank (arXiv 2312.03732).
        lora_plus_ratio: How much faster B learns than A (arXiv 2402.12354).
        vision: Put low-rank updates into the vision encoder, too.
        **shared: The arguments of :class:`~mllm_lit.adapters.base.Adapter`.
    """

    def __init__(
        self,
        rank: int = 128,
        alpha: float = 256,
        dropout: float = 0.05,
        where: Where = "both",
        blocks: Blocks = "all",
        init: bool | str = True,
        use_dora: bool = False,
        use_rslora: bool = False,
        lora_plus_ratio: float | None = None,
        vision: Literal["frozen", "lora"] = "frozen",
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if isinstance(init, str) and init.startswith(DATA_DRIVEN):
            raise AdapterError(f"init: {init} has to see data before training, which no run here gives it.")
        self.rank = in_range("adapter.rank", rank, 1)
        self.alpha = in_range("adapter.alpha", alpha, above=0)
        self.dropout = in_range("adapter.dropout", dropout, 0, below=1)
        self.where: Where = where
        self.blocks: Blocks = blocks
        self.init = init
        self.use_dora = use_dora
        self.use_rslora = use_rslora
        self.lora_plus_ratio = in_range("adapter.lora_plus_ratio", lora_plus_ratio, above=0)
        self.vision = vision
        self._at_attach: dict[str, Tensor] = {}

    @property
    def mutates(self) -> bool:
        """Whether the initialisation changes the frozen weights, so that an untouched adapter is not a no-op."""
        return isinstance(self.init, str) and self.init.startswith(MUTATING)

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft import LoraConfig

        names = set(block_linears(model, layout, self.where, self.blocks))
        if self.connector == "lora":
            names |= role_linears(model, layout, "connector").keys()
        if self.vision == "lora":
            names |= role_linears(model, layout, "vision").keys()
        return LoraConfig(
            r=self.rank,
            lora_alpha=cast("int", self.alpha),
            lora_dropout=self.dropout,
            target_modules=pattern(names),
            init_lora_weights=cast("Any", self.init),
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )

    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """See :meth:`Adapter.wrap`."""
        from mllm_lit.adapters.dropout import draw_geometrically

        wrapped = super().wrap(model, layout)
        draw_geometrically(wrapped)
        if self.mutates:
            trained = ((name, p) for name, p in wrapped.named_parameters() if p.requires_grad)
            self._at_attach = {name: snapshot(p) for name, p in trained}
        return wrapped

    def rate_of(self, name: str) -> tuple[str, float]:
        """LoRA+ lets B learn faster; see :meth:`Adapter.rate_of`."""
        if self.lora_plus_ratio is not None and ".lora_B." in name:
            return "lora_b", self.lora_plus_ratio
        return "", 1.0

    @contextmanager
    def without_new_modules(self, model: "nn.Module") -> Iterator[None]:
        """See :meth:`Adapter.without_new_modules`; a mutated backbone is itself with the initial update only."""
        if not self.mutates:
            with cast("PeftModel", model).disable_adapter():
                yield
            return
        parameters = {name: p for name, p in model.named_parameters() if name in self._at_attach}
        trained = {name: p.data for name, p in parameters.items()}
        try:
            for name, parameter in parameters.items():
                parameter.data = self._at_attach[name].to(parameter.device)
            yield
        finally:
            for name, parameter in parameters.items():
                parameter.data = trained[name]

    def save_modules(self, model: "nn.Module", folder: Path, is_main: bool) -> None:
        """Write peft's two files; an update of a mutated backbone as one of the backbone itself, of twice the rank."""
        if not self.mutates:
            super().save_modules(model, folder, is_main)
            return
        with tempfile.TemporaryDirectory() as start:
            with self.without_new_modules(model):
                cast("PeftModel", model).save_pretrained(start, save_embedding_layers=False)
            cast("PeftModel", model).save_pretrained(
                str(folder),
                save_embedding_layers=False,
                is_main_process=is_main,
                path_initial_model_for_weight_conversion=start,
            )
