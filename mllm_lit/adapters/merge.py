"""A trained adapter made part of the weights under it, or of an adapter that trains on."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mllm_lit.adapters.files import (
    CONNECTOR_FILE,
    DELTA_FILE,
    PEFT_CONFIG,
    check_backbone,
    fill,
    load_adapter,
    read_info,
    read_tensors,
)
from mllm_lit.backbones.quantize import refuse_if_quantized
from mllm_lit.errors import AdapterError

if TYPE_CHECKING:
    from torch import nn

    from mllm_lit.adapters.base import Adapter
    from mllm_lit.backbones.load import LoadedBackbone

Shapes = dict[str, tuple[int, ...]]

FREE = {
    "auto_mapping",
    "base_model_name_or_path",
    "dropout",
    "inference_mode",
    "init",
    "init_lora_weights",
    "lora_dropout",
    "peft_version",
    "revision",
    "vera_dropout",
}
"""Of peft's settings, those that do not change what a trained adapter computes."""


def merged(loaded: "LoadedBackbone", module: Any) -> Any:
    """The backbone's model with an adapter folded into its weights: summed in fp32, kept in the dtype that they had.

    Args:
        loaded: The backbone.
        module: The one to call; the backbone's model itself where there is nothing beside its weights.

    Raises:
        AdapterError: The adapter is no update of weights.
        QuantizationError: The weights are packed integers.
    """
    model: Any = loaded.model
    refuse_if_quantized(model, "Merging an adapter")
    if module is model:
        return model
    dtypes = {}
    for name, parameter in module.named_parameters():
        if ".base_layer." in name:
            dtypes[loaded.layout.base_name(name)] = parameter.dtype
            parameter.data = parameter.data.float()
    try:
        module.merge_and_unload()
    except (AttributeError, NotImplementedError, ValueError) as error:
        kind = next(iter(module.peft_config.values())).peft_type
        raise AdapterError(
            f"An adapter of the type {getattr(kind, 'value', kind)} adds computations, not an update of the weights, "
            "so it cannot be merged into them."
        ) from error
    for name, parameter in model.named_parameters():
        parameter.data = parameter.data.to(dtypes.get(name, parameter.dtype))
    # peft has embeddings ask for gradients when activations are recomputed.
    model.disable_input_require_grads()
    return model


def merge_into(loaded: "LoadedBackbone", folder: Path) -> None:
    """Make what a run trained part of a backbone, which is another backbone then.

    Args:
        loaded: What the run was trained on; changed in place.
        folder: The run's ``adapter`` folder.

    Raises:
        AdapterError: The adapter is of another backbone, or no update of weights.
        QuantizationError: The weights are packed integers.
    """
    merged(loaded, load_adapter(loaded, folder))
    loaded.model.eval()  # type: ignore[no-untyped-call]
    loaded.identity = identity_with(loaded.identity, folder)


def identity_with(identity: str, folder: Path) -> str:
    """The identity of a backbone together with an adapter: of what both are made from, since sums round differently.

    Args:
        identity: The backbone's.
        folder: The adapter's; every byte of its settings and tensors counts.
    """
    digest = hashlib.sha256(identity.encode())
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            with file.open("rb") as opened:
                digest.update(file.name.encode() + hashlib.file_digest(opened, "sha256").digest())
    return digest.hexdigest()


def go_on_from(adapter: "Adapter", module: "nn.Module", folder: Path) -> None:
    """Give everything that an attached adapter trains the values that a run has left.

    Args:
        adapter: Of the same kind and shape as the run's.
        module: What its ``attach`` returned.
        folder: The run's ``adapter`` folder.

    Raises:
        AdapterError: The adapter there is of another backbone, of another kind or of another shape.
    """
    check_backbone(folder, adapter.identity)
    kind, own = read_info(folder)["adapter"], type(adapter).__name__
    if kind != own:
        raise AdapterError(f"{folder} holds a {kind} adapter, this run trains {own}. {remedy(kind)}")
    if getattr(adapter, "mutates", False):
        raise AdapterError(
            f"{folder} holds the sum of an initialisation that changes the backbone (PiSSA, OLoRA) and of what was "
            f"trained, which cannot be taken apart again. {MERGE}"
        )
    tensors = {
        name: tensor
        for file in (folder / CONNECTOR_FILE, folder / DELTA_FILE)
        if file.is_file()
        for name, tensor in read_tensors(file).items()
    }
    opened = adapter.opened_parameters(module)
    stored, mine = _shapes(tensors), _shapes(opened)
    if (folder / PEFT_CONFIG).is_file():
        from peft import PeftConfig, get_peft_model_state_dict, load_peft_weights

        stored |= _shapes(load_peft_weights(str(folder), device="cpu"))
        mine |= _shapes(get_peft_model_state_dict(module, save_embedding_layers=False))
        config: Any = module.peft_config
        _same_settings(PeftConfig.from_pretrained(str(folder)).to_dict(), config["default"].to_dict(), folder)
    _same_shapes(stored, mine, folder)
    with torch.no_grad():
        for name, tensor in tensors.items():
            opened[name].copy_(tensor)
    if (folder / PEFT_CONFIG).is_file():
        fill(module, folder)


MERGE = "Set model.start: merge, which makes it part of the weights and trains a new adapter."


def remedy(kind: str) -> str:
    """What to do about an adapter that cannot be gone on with."""
    return f"Give model.adapter the settings that {kind} had there. {MERGE.replace('Set', 'Or set')}"


def _shapes(tensors: Any) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _same_shapes(stored: Shapes, mine: Shapes, folder: Path) -> None:
    missing, extra = sorted(mine.keys() - stored.keys()), sorted(stored.keys() - mine.keys())
    both = sorted(stored.keys() & mine.keys())
    other = [f"{name} {stored[name]}, here {mine[name]}" for name in both if stored[name] != mine[name]]
    if missing or extra or other:
        raise AdapterError(
            f"{folder} does not fit what this run trains: {len(missing)} tensors are not in it {missing[:3]}, "
            f"{len(extra)} do not train here {extra[:3]}, {len(other)} have another shape {other[:3]}. "
            f"{remedy('the adapter')}"
        )


def _same_settings(stored: dict[str, Any], mine: dict[str, Any], folder: Path) -> None:
    """Settings that change what the same tensors compute, such as LoRA's alpha; the tensors say where they are."""
    names = (name for name in stored.keys() & mine.keys() - FREE if not name.endswith("modules"))
    other = [f"{name} {stored[name]}, here {mine[name]}" for name in sorted(names) if stored[name] != mine[name]]
    if other:
        raise AdapterError(f"{folder} was trained with other settings: {'; '.join(other)}. {remedy('the adapter')}")
