"""Bottleneck adapters as a tuner of peft, which has none: attach, disable, several by name, save, load.

Importing this module makes the type known to peft, after which ``peft.PeftModel.from_pretrained`` reads it, too.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, NoReturn, cast

import torch
from peft import PeftConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import Tensor, nn
from transformers.activations import ACT2FN

Position = Literal["before", "after", "parallel"]
NORMAL_STD = 0.02


class BottleneckType(StrEnum):
    """The name under which peft files this method; its own enumeration takes no new members."""

    BOTTLENECK = "BOTTLENECK"


@dataclass
class BottleneckConfig(PeftConfig):
    """What ``adapter_config.json`` holds.

    Attributes:
        target_modules: Regular expression of the linear layers that are adapted.
        after_modules: Those of them whose output is adapted; the others' input is.
        parallel: Add to the output what is computed from the input, on all of them.
        size: Width of the bottleneck.
        non_linearity: Any name that transformers knows.
        dropout: On the bottleneck's input.
        scale: Factor of what is added.
        learn_scale: Train the factor.
        init: ``zero`` starts as the identity; ``normal`` draws both matrices from N(0, 0.02), as the study's code did.
    """

    target_modules: str | None = None
    after_modules: str | None = None
    parallel: bool = False
    size: int = 256
    non_linearity: str = "tanh"
    dropout: float = 0.05
    scale: float = 1.0
    learn_scale: bool = False
    init: Literal["zero", "normal"] = "zero"
    bias: str = field(default="none", init=False)

    def __post_init__(self) -> None:
        """Set the type, as every config of peft does."""
        super().__post_init__()  # type: ignore[no-untyped-call]
        self.peft_type = BottleneckType.BOTTLENECK


class BottleneckLinear(nn.Module, BaseTunerLayer):
    """A linear layer W with ``f(v) = s U act(D drop(v))`` before, after or beside it.

    before: ``W(x + f(x))``; after: ``Wx + f(Wx)``; parallel: ``Wx + f(x)``. Of several active adapters the
    contributions are added.
    """

    adapter_layer_names = ("bottleneck_down", "bottleneck_up", "bottleneck_scale")
    other_param_names = ("bottleneck_dropout", "configs")

    def __init__(self, base_layer: nn.Module, adapter_name: str, config: BottleneckConfig, position: Position) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.position = position
        self.bottleneck_down = nn.ModuleDict()
        self.bottleneck_up = nn.ModuleDict()
        self.bottleneck_scale = nn.ParameterDict()
        self.bottleneck_dropout = nn.ModuleDict()
        self.configs: dict[str, BottleneckConfig] = {}
        self.merged_adapters = []
        self.update_layer(adapter_name, config)
        self._active_adapter = adapter_name

    def update_layer(self, adapter_name: str, config: BottleneckConfig) -> None:
        """Add one named adapter."""
        layer = cast("nn.Linear", self.get_base_layer())
        weight, out_features, in_features = layer.weight, layer.out_features, layer.in_features
        read = out_features if self.position == "after" else in_features
        write = in_features if self.position == "before" else out_features
        down = nn.Linear(read, config.size, bias=False, device=weight.device)
        up = nn.Linear(config.size, write, bias=False, device=weight.device)
        nn.init.normal_(down.weight, std=NORMAL_STD)
        if config.init == "zero":
            nn.init.zeros_(up.weight)
        else:
            nn.init.normal_(up.weight, std=NORMAL_STD)
        self.bottleneck_down[adapter_name] = down
        self.bottleneck_up[adapter_name] = up
        self.bottleneck_dropout[adapter_name] = nn.Dropout(config.dropout)
        if config.learn_scale:
            self.bottleneck_scale[adapter_name] = nn.Parameter(torch.full((1,), config.scale, device=weight.device))
        self.configs[adapter_name] = config
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def contribution(self, hidden: Tensor) -> Tensor:
        """What the active adapters add, ``(..., read) -> (..., write)``."""
        total: Tensor | None = None
        for name in self.active_adapters:
            if name not in self.bottleneck_down:
                continue
            config = self.configs[name]
            down = cast("nn.Linear", self.bottleneck_down[name])
            inside = down(self.bottleneck_dropout[name](self._cast_input_dtype(hidden, down.weight.dtype)))
            scale = self.bottleneck_scale[name] if config.learn_scale else config.scale
            added = self.bottleneck_up[name](ACT2FN[config.non_linearity](inside)) * scale
            total = added if total is None else total + added
        return torch.zeros((), dtype=hidden.dtype, device=hidden.device) if total is None else total.to(hidden.dtype)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """``(..., in_features) -> (..., out_features)``."""
        if self.disable_adapters:
            return self.base_layer(x, *args, **kwargs)
        if self.position == "before":
            return self.base_layer(x + self.contribution(x), *args, **kwargs)
        output = self.base_layer(x, *args, **kwargs)
        return output + self.contribution(x if self.position == "parallel" else output)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> NoReturn:
        """Refused: the non-linearity has no equal among linear layers."""
        raise ValueError(
            "A bottleneck adapter is not linear, so it cannot be merged into weights; keep it beside them."
        )


class BottleneckModel(BaseTuner):
    """Puts :class:`BottleneckLinear` in place of the targeted linear layers."""

    prefix = "bottleneck_"
    tuner_layer_cls = BottleneckLinear
    target_module_mapping: dict[str, list[str]] = {}

    def _create_and_replace(  # type: ignore[override]
        self,
        config: BottleneckConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
    ) -> None:
        if isinstance(target, BottleneckLinear):
            target.update_layer(adapter_name, config)
            return
        if not isinstance(target, nn.Linear):
            raise TypeError(f"{current_key} is a {type(target).__name__}; bottleneck adapters go to nn.Linear only.")
        position: Position = "before"
        if config.parallel:
            position = "parallel"
        elif config.after_modules is not None and re.fullmatch(config.after_modules, current_key):
            position = "after"
        new = BottleneckLinear(target, adapter_name, config, position)
        if adapter_name not in self.active_adapters:
            new.requires_grad_(False)
        self._replace_module(parent, target_name, new, target)

    def _check_merge_allowed(self) -> None:
        BottleneckLinear.merge(None)  # type: ignore[arg-type]


PEFT_TYPE_TO_CONFIG_MAPPING[BottleneckType.BOTTLENECK] = BottleneckConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[BottleneckType.BOTTLENECK] = BottleneckModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[BottleneckType.BOTTLENECK] = BottleneckModel.prefix  # type: ignore[index]
