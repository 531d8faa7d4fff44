"""Adapters that peft provides, pointed at the right modules."""

import tempfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.copies import as_transformers_is, snapshot, whole
from mllm_lit.adapters.subspace import SUBSPACES, low_rank_layers, split_off, split_off_subspace
from mllm_lit.adapters.targets import Blocks, Where, block_linears, pattern, role_linears
from mllm_lit.backbones.family import family_of
from mllm_lit.backbones.layout import Layout
from mllm_lit.backbones.quantize import refuse_if_quantized
from mllm_lit.errors import AdapterError, in_range

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel
    from torch import Tensor, nn

    from mllm_lit.backbones.load import LoadedBackbone

# Initialisations that subtract something from the weights they are added to.
MUTATING = ("pissa", "olora", "loftq", *SUBSPACES)
# Initialisations of peft that have to see data first.
DATA_DRIVEN = ("eva", "lora_ga")


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
        with as_transformers_is():
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
            ``pissa_niter_4``, ``olora``, ``orthogonal``, ``loftq``, ``mica``; or ``corda`` or ``lora_null``, which look
            at what the layers read before training (:mod:`mllm_lit.adapters.subspace`).
        use_dora: Learn magnitude and direction apart (arXiv 2402.09353).
        use_rslora: Scale by the square root of the rank (arXiv 2312.03732).
        lora_plus_ratio: How much faster B learns than A (arXiv 2402.12354).
        vision: Put low-rank updates into the vision encoder, too.
        init_from: What ``corda`` and ``lora_null`` look at: texts that the model writes (``None``, too), or rows of the
            sources' train splits, in turns.
        init_rows: How many; ``None`` for 256.
        best_conditioned: Adapt this share of the chosen linear layers, those whose weights have the smallest condition
            number (KappaTune, arXiv 2506.16289); ``None`` for all.
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
        init_from: Literal["generated", "sources"] | None = None,
        init_rows: int | None = None,
        best_conditioned: float | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if isinstance(init, str) and init.startswith(DATA_DRIVEN):
            raise AdapterError(
                f"init: {init} has to see data before training, which no run here gives it. Those that are shown some "
                f"are {' and '.join(SUBSPACES)}."
            )
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
        if init not in SUBSPACES and (init_from is not None or init_rows is not None):
            raise AdapterError(
                f"adapter.init_from and adapter.init_rows say what init: {' and '.join(SUBSPACES)} look at; init is "
                f"{init}, which looks at nothing. Leave them out, or set init."
            )
        self.init_from = init_from or "generated"
        self.init_rows = in_range("adapter.init_rows", 256 if init_rows is None else init_rows, 1)
        self.best_conditioned = in_range("adapter.best_conditioned", best_conditioned, 0, 1)
        self._at_attach: dict[str, Tensor] = {}
        self._frozen: dict[str, Tensor] = {}

    @property
    def mutates(self) -> bool:
        """Whether the initialisation changes the frozen weights, so that an untouched adapter is not a no-op."""
        return isinstance(self.init, str) and self.init.startswith(MUTATING)

    def config(self, model: "nn.Module", layout: Layout) -> "PeftConfig":
        """See :meth:`PeftAdapter.config`."""
        from peft import LoraConfig

        linears = block_linears(model, layout, self.where, self.blocks)
        names = set(linears if self.best_conditioned is None else best_conditioned(linears, self.best_conditioned))
        if self.connector == "lora":
            names |= role_linears(model, layout, "connector").keys()
        if self.vision == "lora":
            names |= role_linears(model, layout, "vision").keys()
        return LoraConfig(
            r=self.rank,
            lora_alpha=cast("int", self.alpha),
            lora_dropout=self.dropout,
            target_modules=pattern(names),
            init_lora_weights=cast("Any", True if self.init in SUBSPACES else self.init),
            use_dora=self.use_dora,
            use_rslora=self.use_rslora,
        )

    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """See :meth:`Adapter.wrap`.

        Raises:
            QuantizationError: The initialisation reads weights, which are packed integers.
        """
        from mllm_lit.adapters.dropout import draw_geometrically

        if self.mutates or self.init == "mica":
            refuse_if_quantized(model, f"adapter.init: {self.init}")
        wrapped = super().wrap(model, layout)
        draw_geometrically(wrapped)
        if self.mutates and not self.looks_at_data:
            self._remember(wrapped)
        self._remember_frozen(wrapped)
        return wrapped

    def _remember(self, model: "nn.Module") -> None:
        """Keep what the update is made of before training."""
        own = ((name, p) for name, p in model.named_parameters() if ".lora_" in name)
        self._at_attach = {name: snapshot(p) for name, p in own}

    def _remember_frozen(self, model: "nn.Module") -> None:
        """Keep what of the update does not train: MiCA's B, whose signs differ between machines."""
        own = ((name, p) for name, p in model.named_parameters() if ".lora_" in name and not p.requires_grad)
        self._frozen = {name: snapshot(p) for name, p in own}

    def go_on_from(self, loaded: "LoadedBackbone", module: "nn.Module", folder: Path) -> None:
        """See :meth:`Adapter.go_on_from`."""
        super().go_on_from(loaded, module, folder)
        self._remember_frozen(module)

    @property
    def looks_at_data(self) -> bool:  # type: ignore[override]
        """See :class:`Adapter`."""
        return self.init in SUBSPACES

    def initialise(self, model: "nn.Module", products: "Mapping[str, Tensor]") -> None:
        """See :meth:`Adapter.initialise`."""
        split_off_subspace(model, str(self.init), products)
        self._remember(model)

    def initial_state(self) -> "dict[str, Tensor]":
        """See :meth:`Adapter.initial_state`."""
        return self._at_attach if self.looks_at_data else self._frozen

    def load_initial_state(self, model: "nn.Module", state: "dict[str, Tensor]") -> None:
        """See :meth:`Adapter.load_initial_state`."""
        if not state:
            return
        if self._frozen:
            from mllm_lit.tensors import local, shard_like

            parameters = dict(model.named_parameters())
            for name, kept in state.items():
                local(parameters[name]).copy_(shard_like(kept, parameters[name]))
            self._frozen = state
            return
        for name, layer in low_rank_layers(model).items():
            split_off(layer, *(state[f"{name}.{part}.default.weight"] for part in ("lora_B", "lora_A")))
        self._remember(model)

    def rate_of(self, name: str) -> tuple[str, float]:
        """LoRA+ lets B learn faster; see :meth:`Adapter.rate_of`."""
        if self.lora_plus_ratio is not None and ".lora_B." in name:
            return "lora_b", self.lora_plus_ratio
        return "", 1.0

    @contextmanager
    def without_new_modules(self, model: "nn.Module") -> Iterator[None]:
        """See :meth:`Adapter.without_new_modules`; a mutated backbone is itself with the initial update only."""
        if not self._at_attach:
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
        if not self._at_attach:
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


def best_conditioned(linears: "dict[str, nn.Module]", share: float) -> list[str]:
    """Names of the linear layers whose weights have the smallest condition numbers (KappaTune), at least one.

    Args:
        linears: By name.
        share: Of all of them.

    Raises:
        AdapterError: peft cannot measure some of them.
    """
    from peft.helpers import KappaTuneSelector
    from torch import nn

    layers = [layer for layer in linears.values() if isinstance(layer, nn.Linear)]
    if len(layers) < len(linears):
        others = sorted({type(layer).__name__ for layer in linears.values() if not isinstance(layer, nn.Linear)})
        raise AdapterError(
            f"adapter.best_conditioned: {len(linears) - len(layers)} of the {len(linears)} chosen linear layers are of "
            f"the kind {' and '.join(others)}, and only those of the kind Linear can be measured. Leave it out."
        )
    widest = max(max(layer.in_features, layer.out_features) for layer in layers)
    selector = KappaTuneSelector(nn.ModuleList(layers), widest, show_progress=len(layers) > 64)
    measured = selector.get_best_targets()
    if len(measured) < len(layers):
        raise AdapterError(
            f"adapter.best_conditioned is a share of all {len(layers)} chosen linear layers, but peft has measured "
            f"{len(measured)} of them. Leave it out."
        )
    names = list(linears)
    return [names[int(place)] for place in measured[: max(1, int(share * len(names)))]]
