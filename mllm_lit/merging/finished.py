"""What a finished run trained, as changes of the backbone's own weights, which is what merges act on."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mllm_lit.adapters.base import Adapter
from mllm_lit.adapters.files import CONNECTOR_FILE, DELTA_FILE, load_adapter, read_tensors
from mllm_lit.backbones.quantize import refuse_if_quantized
from mllm_lit.merging.base import MergeError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mllm_lit.backbones.layout import Layout
    from mllm_lit.backbones.load import LoadedBackbone

Weights = dict[str, "Tensor"]


class Finished(Adapter):
    """Stands in for a run's adapter: :meth:`attach` gives the bare backbone with all that was trained merged in.

    Args:
        folder: The run's ``adapter`` folder.

    Attributes:
        before: θ0 by name in the bare model, fp32, of every tensor that the run changed.
        after: θ, likewise.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(connector="frozen")
        self.folder = folder
        self.before: Weights = {}
        self.after: Weights = {}

    def attach(self, loaded: "LoadedBackbone") -> "nn.Module":
        """Load and merge; the changed tensors are marked as trained, so that nothing computed from them is reused.

        Raises:
            MergeError: The adapter is not a change of weights.
        """
        self.before, self.after = changed_weights(loaded, self.folder)
        self.layout, self.identity, self.opened = loaded.layout, loaded.identity, frozenset(self.after)
        loaded.model.requires_grad_(False)
        for name, parameter in loaded.model.named_parameters():
            parameter.requires_grad_(name in self.after)
        loaded.model.eval()  # type: ignore[no-untyped-call]
        return loaded.model

    def go_on_from(self, loaded: "LoadedBackbone", module: "nn.Module", folder: Path) -> None:
        """The run went on with the adapter in ``folder``, so that θ0 is the backbone with that one merged."""
        assign(loaded.model, self.before)
        self.before |= changed_weights(loaded, folder)[1]
        assign(loaded.model, self.after)

    def wrap(self, model: "nn.Module", layout: "Layout") -> "nn.Module":
        """Nothing is added; see :meth:`Adapter.wrap`."""
        return model


def changed_weights(loaded: "LoadedBackbone", folder: Path) -> tuple[Weights, Weights]:
    """θ0 and θ, fp32, of every tensor that a run changed; the model is left at θ, with those tensors in fp32.

    Args:
        loaded: The backbone as it was before training.
        folder: The run's ``adapter`` folder.

    Raises:
        AdapterError: The folder holds no adapter, or one of another backbone.
        MergeError: The adapter is not a change of weights (virtual tokens, a bottleneck).
        QuantizationError: The backbone's weights are packed.
    """
    from peft import PeftModel

    refuse_if_quantized(loaded.model, "Merging")
    files = [file for file in (folder / CONNECTOR_FILE, folder / DELTA_FILE) if file.is_file()]
    before = _widened(loaded.model, {name for file in files for name in read_tensors(file)})
    model: Any = load_adapter(loaded, folder)
    if isinstance(model, PeftModel):
        before |= _merged(model, loaded)
    parameters = dict(loaded.model.named_parameters())
    return before, {name: parameters[name].detach().clone() for name in before}


def assign(model: "nn.Module", weights: Mapping[str, "Tensor"]) -> None:
    """Give parameters of a bare model new values, by name."""
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, value in weights.items():
            parameters[name].copy_(value)


def _merged(model: Any, loaded: "LoadedBackbone") -> Weights:
    """Merge peft's modules into the weights under them, and return what those were."""
    kind = next(iter(model.peft_config.values()))
    if kind.is_prompt_learning or not hasattr(model.base_model, "merge_and_unload"):
        raise MergeError(
            f"{kind.peft_type} puts virtual tokens before the text and changes no weight, so there is nothing to merge."
        )
    under = [(name, p) for name, p in model.named_parameters() if ".base_layer." in name]
    before = {}
    for name, parameter in under:
        parameter.data = parameter.data.float()
        before[loaded.layout.base_name(name)] = parameter.detach().clone()
    try:
        model.merge_and_unload()
    except (NotImplementedError, ValueError) as error:
        raise MergeError(f"{kind.peft_type} cannot be merged into the backbone's weights: {error}") from error
    return before


def _widened(model: "nn.Module", names: set[str]) -> Weights:
    """Copies of the named parameters in fp32, which the parameters become, too."""
    found = {name: p for name, p in model.named_parameters() if name in names}
    for parameter in found.values():
        parameter.data = parameter.data.float()
    return {name: parameter.detach().clone() for name, parameter in found.items()}
