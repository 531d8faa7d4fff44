"""What is trained: an adapter opens some tensors of a frozen backbone and says how fast each of them learns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mllm_lit.backbones.layout import Layout, Role
from mllm_lit.errors import AdapterError, in_range

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mllm_lit.backbones.load import LoadedBackbone

ConnectorMode = Literal["frozen", "tuned", "lora"]


class Adapter(ABC):
    """How a backbone is tuned.

    Args:
        lr: Learning rate of what is trained in or beside the LLM.
        connector: Leave the connector frozen, tune it, or (LoRA only) give its linears a low-rank update.
        connector_lr: Learning rate of the connector; ``None`` for ``lr``.
        vision_lr: Learning rate of what is trained in the vision encoder; ``None`` for ``lr``.
        weight_decay: Of matrices; norms, biases and other vectors are never decayed.
    """

    exact_at_attach = True
    """Whether the logits right after :meth:`attach` are promised to be those of the backbone."""
    adds_computations = False
    """Whether it is no update of the weights, so that it cannot be merged into them."""
    looks_at_data = False
    """Whether :meth:`initialise` is to be called before training."""
    extra_positions = 0
    """How many positions the adapter puts ahead of the logits (virtual tokens of prompt tuning)."""

    def __init__(
        self,
        lr: float = 2e-4,
        connector: ConnectorMode = "tuned",
        connector_lr: float | None = 2e-5,
        vision_lr: float | None = None,
        weight_decay: float = 0.0,
    ) -> None:
        self.lr = in_range("adapter.lr", lr, 0)
        self.connector = connector
        self.connector_lr = in_range("adapter.connector_lr", connector_lr, 0)
        self.vision_lr = in_range("adapter.vision_lr", vision_lr, 0)
        self.weight_decay = in_range("adapter.weight_decay", weight_decay, 0)
        self.identity = ""
        self.layout: Layout | None = None
        self.opened: frozenset[str] = frozenset()
        self.bare_names: frozenset[str] = frozenset()

    def attach(self, loaded: "LoadedBackbone") -> "nn.Module":
        """Freeze the backbone, open what this adapter trains in fp32, and return the module to call.

        New tensors are drawn from torch's global random state. The module is left in training mode, its vision
        encoder in eval mode unless something in it is trained.

        Raises:
            AdapterError: The connector is to be tuned and the backbone has none, or a target does not exist.
        """
        model, layout = loaded.model, loaded.layout
        model.requires_grad_(False)
        parameters = dict(model.named_parameters())
        names = self.opens(model, layout)
        self.layout, self.identity, self.opened = layout, loaded.identity, frozenset(names)
        self.bare_names = frozenset(model.state_dict())
        module = self.wrap(model, layout)
        for name in names:
            parameters[name].data = parameters[name].data.float()
            parameters[name].requires_grad_(True)
        module.train()
        roles = {layout.role_of(name) for name, p in module.named_parameters() if p.requires_grad}
        if not roles:
            raise AdapterError(f"{type(self).__name__} leaves nothing to train; give it blocks, a connector or both.")
        if "vision" not in roles:
            for path in layout.vision:
                model.get_submodule(path).eval()
        return module

    def opens(self, model: "nn.Module", layout: Layout) -> list[str]:
        """The backbone's own parameters that are trained.

        Raises:
            AdapterError: The connector is to be tuned and the backbone has none.
        """
        names = self.names_to_open(model, layout)
        if self.connector != "tuned":
            return names
        connector = [name for name, _ in model.named_parameters() if layout.role_of(name) == "connector"]
        if not connector:
            raise AdapterError(f"connector: tuned, but {type(model).__name__} has none. Set connector: frozen.")
        return [*names, *connector]

    def names_to_open(self, model: "nn.Module", layout: Layout) -> list[str]:
        """The backbone's own parameters that are trained, the connector's aside."""
        return []

    @abstractmethod
    def wrap(self, model: "nn.Module", layout: Layout) -> "nn.Module":
        """Put new modules into the frozen model, if there are any, and return the module to call."""

    def parameter_groups(self, model: "nn.Module", layout: Layout) -> list[dict[str, Any]]:
        """Optimizer groups of everything that requires a gradient, one per role, decay and learning rate.

        Returns:
            Groups with ``params``, ``lr``, ``weight_decay`` and a unique ``name`` (``llm``, ``connector/no_decay``).
        """
        rates: dict[Role, float | None] = {"llm": self.lr, "connector": self.connector_lr, "vision": self.vision_lr}
        groups: dict[str, dict[str, Any]] = {}
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            role = layout.role_of(name)
            rate = rates[role]
            label, factor = self.rate_of(name)
            decays = parameter.ndim > 1
            key = "/".join([role, *([label] if label else []), *([] if decays else ["no_decay"])])
            group = groups.setdefault(
                key,
                {
                    "params": [],
                    "lr": (self.lr if rate is None else rate) * factor,
                    "weight_decay": self.weight_decay if decays else 0.0,
                    "name": key,
                },
            )
            group["params"].append(parameter)
        return list(groups.values())

    def rate_of(self, name: str) -> tuple[str, float]:
        """A label for parameters that learn at a multiple of their role's rate, and that multiple."""
        return "", 1.0

    def initialise(self, model: "nn.Module", products: "Mapping[str, Tensor]") -> None:
        """Begin where the model's layers read least, where ``looks_at_data``.

        Args:
            model: What :meth:`attach` returned.
            products: XᵀX of the inputs of some of its low-rank layers; see :mod:`mllm_lit.adapters.subspace`.

        Raises:
            AdapterError: A layer was given no input, or is smaller than the rank.
        """
        return

    def initial_state(self) -> "dict[str, Tensor]":
        """What a checkpoint has to hold of the beginning, beside what trains; empty where attaching gives it again."""
        return {}

    def load_initial_state(self, model: "nn.Module", state: "dict[str, Tensor]") -> None:
        """Begin where another run began, see :meth:`initial_state`."""
        return

    def without_new_modules(self, model: "nn.Module") -> Any:
        """A context in which the modules that :meth:`wrap` put in have no effect."""
        return nullcontext()

    def save_modules(self, model: "nn.Module", folder: Path, is_main: bool) -> None:
        """Write the modules that :meth:`wrap` put in, if there are any."""
        return

    def opened_parameters(self, model: "nn.Module") -> "dict[str, nn.Parameter]":
        """The backbone's own parameters that are trained, by their name in the bare model."""
        layout = self.attached_layout()
        named = {layout.base_name(name): p for name, p in model.named_parameters() if p.requires_grad}
        return {name: p for name, p in named.items() if name in self.opened}

    def attached_layout(self) -> Layout:
        """The layout of the backbone this adapter is attached to."""
        if self.layout is None:
            raise AdapterError(f"This {type(self).__name__} is not attached to a backbone yet: call attach() first.")
        return self.layout

    def save(self, model: "nn.Module", folder: str | Path, is_main: bool = True) -> None:
        """Write all that was trained; see :func:`mllm_lit.adapters.files.save_adapter`."""
        from mllm_lit.adapters.files import save_adapter

        save_adapter(self, model, Path(folder), is_main)

    def go_on_from(self, loaded: "LoadedBackbone", module: "nn.Module", folder: Path) -> None:
        """Train on from what a run has left; see :func:`mllm_lit.adapters.merge.go_on_from`."""
        from mllm_lit.adapters.merge import go_on_from

        go_on_from(self, module, folder)

    @staticmethod
    def load(loaded: "LoadedBackbone", folder: str | Path) -> "nn.Module":
        """Put a saved adapter onto a backbone; see :func:`mllm_lit.adapters.files.load_adapter`."""
        from mllm_lit.adapters.files import load_adapter

        return load_adapter(loaded, Path(folder))
