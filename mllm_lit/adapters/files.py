"""Trained weights on disk: peft's own files, plus safetensors of the backbone's tensors that were trained.

A folder holds ``adapter_config.json`` and ``adapter_model.safetensors`` where peft is involved,
``connector.safetensors`` and ``delta.safetensors`` with trained tensors of the connector and of the rest, under their
names in the bare model, and ``mllm_lit.json``. All but the last load without this package.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from mllm_lit import __version__
from mllm_lit.adapters.copies import as_transformers_is, whole
from mllm_lit.errors import AdapterError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mllm_lit.adapters.base import Adapter
    from mllm_lit.backbones.load import LoadedBackbone

CONNECTOR_FILE = "connector.safetensors"
DELTA_FILE = "delta.safetensors"
PEFT_CONFIG = "adapter_config.json"
INFO_FILE = "mllm_lit.json"


def save_adapter(adapter: "Adapter", model: "nn.Module", folder: Path, is_main: bool = True) -> None:
    """Write everything an adapter trains.

    Every rank has to call this where tensors are sharded; only the one with ``is_main`` writes.

    Args:
        adapter: The adapter, attached.
        model: What its ``attach`` returned.
        folder: Created if missing.
        is_main: Whether this process writes.
    """
    layout = adapter.attached_layout()
    info = {
        "backbone": adapter.identity,
        "adapter": type(adapter).__name__,
        "mllm_lit": __version__,
        "format": "pt",
    }
    tensors = {name: whole(parameter) for name, parameter in adapter.opened_parameters(model).items()}
    connector = {name: tensor for name, tensor in tensors.items() if layout.role_of(name) == "connector"}
    delta = {name: tensor for name, tensor in tensors.items() if name not in connector}
    adapter.save_modules(model, folder, is_main)
    if not is_main:
        return
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in ((CONNECTOR_FILE, connector), (DELTA_FILE, delta)):
        if content:
            save_file(content, folder / file, metadata=info)
    (folder / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")


def load_adapter(loaded: "LoadedBackbone", folder: Path) -> "nn.Module":
    """Put the weights in a folder written by :func:`save_adapter` onto a backbone.

    Args:
        loaded: The backbone; if its model is a ``PeftModel`` already, the adapter in it takes the values and stays
            trainable, else the adapter is added for inference.
        folder: Holds what was saved.

    Returns:
        The module to call.

    Raises:
        AdapterError: The folder holds no adapter, one of another backbone, or tensors this backbone does not have.
    """
    from peft import PeftModel

    check_backbone(folder, loaded.identity)
    files = [folder / CONNECTOR_FILE, folder / DELTA_FILE]
    tensors = {name: tensor for file in files if file.is_file() for name, tensor in read_tensors(file).items()}
    model: nn.Module = loaded.model
    if (folder / PEFT_CONFIG).is_file():
        # Before the adapter goes in, so that an initialisation that reads the weights sees those of the backbone.
        _assign(model, tensors, loaded, folder)
        if not isinstance(model, PeftModel):
            # Every rank reads it, and not onto one and the same GPU.
            with as_transformers_is():
                return PeftModel.from_pretrained(model, str(folder), torch_device="cpu").eval()
        fill(model, folder)
        return model
    if not tensors:
        raise AdapterError(f"{folder} holds neither adapter_config.json nor {CONNECTOR_FILE} nor {DELTA_FILE}.")
    _assign(model, tensors, loaded, folder)
    return model


def check_backbone(folder: Path, identity: str) -> None:
    """Refuse an adapter that was trained on another backbone.

    Raises:
        AdapterError: The folder has no ``mllm_lit.json``, or the identity in it is another.
    """
    trained_on = read_info(folder)["backbone"]
    if trained_on != identity:
        raise AdapterError(
            f"{folder} was trained on the backbone {trained_on[:12]}, the one loaded is {identity[:12]}: "
            "their weights or their architecture differ. Load the backbone that the run's config names."
        )


def read_info(folder: Path) -> dict[str, str]:
    """What a folder says of itself: ``backbone`` (an identity), ``adapter`` (a class) and versions.

    Raises:
        AdapterError: It has no ``mllm_lit.json``.
    """
    file = folder / INFO_FILE
    if not file.is_file():
        raise AdapterError(f"{folder} has no {INFO_FILE}: it is not a folder that a run of this project has written.")
    info: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return info


def read_tensors(file: Path) -> "dict[str, Tensor]":
    """The tensors of a safetensors file, by name."""
    with safe_open(file, framework="pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (not a dict)


def fill(model: Any, folder: Path) -> None:
    """Give an adapter that is attached already the values in a folder."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        result: Any = set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:
        raise AdapterError(
            f"{folder} does not fit the attached adapter. Its shape may differ, or it was saved for use rather than "
            "for more training (a projected prefix, an initialisation that changes the backbone): go on from a "
            f"checkpoint of that run instead.\n{error}"
        ) from error
    # Prompt methods are filled by peft under another name and then reported.
    if unexpected := [key for key in result.unexpected_keys if key != "prompt_embeddings"]:
        raise AdapterError(f"{folder} holds tensors that the attached adapter lacks, such as {unexpected[:3]}.")


def _assign(model: "nn.Module", tensors: "dict[str, Tensor]", loaded: "LoadedBackbone", folder: Path) -> None:
    parameters = {loaded.layout.base_name(name): p for name, p in model.named_parameters()}
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            there = tuple(parameters[name].shape) if name in parameters else "no such tensor"
            raise AdapterError(f"{folder}: {name} has shape {tuple(tensor.shape)}, the backbone has {there}.")
        with torch.no_grad():
            parameters[name].copy_(tensor)
