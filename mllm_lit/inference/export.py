"""One Hugging Face folder of a backbone with everything a run has trained in it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.adapters.merge import merged
from mllm_lit.data.prompt import chat_format
from mllm_lit.data.sample import Turn
from mllm_lit.errors import AdapterError, BackboneError, writing
from mllm_lit.inference.ask import prompt_inputs
from mllm_lit.inference.run import Tuned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Model types of this package, and the module whose import makes them known to transformers.
OWN = {"mllm_lit_composed": "mllm_lit.backbones.composed", "efficientnet_lite": "mllm_lit.backbones.efficientnet_lite"}
PLAIN = {"linear_1": "layers.0", "linear_2": "layers.2"}
PROBE = "What is this?"


class ExportError(BackboneError):
    """A model cannot be written as one folder; the message says why."""


def merge(tuned: Tuned) -> "PreTrainedModel":
    """The backbone's model with the adapter folded into its weights.

    Raises:
        ExportError: The adapter is no update of weights.
        QuantizationError: The weights are packed integers.
    """
    try:
        return merged(tuned.loaded, tuned.module)
    except AdapterError as error:
        raise ExportError(f"{error} Use the backbone and the run's adapter/ folder with peft.PeftModel.") from error


def to_plain(model: "PreTrainedModel") -> "PreTrainedModel":
    """A composed model with LLaVA's own connector as a ``LlavaForConditionalGeneration``; any other as it is.

    The result shares its weights with the model given.
    """
    import torch
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.conversion_mapping import get_model_conversion_mapping

    config: Any = model.config
    if getattr(config, "connector", None) != "mlp2x_gelu":
        return model
    settings = {key: value for key, value in config.to_dict().items() if not key.startswith("connector")}
    settings = {key: value for key, value in settings.items() if key not in ("model_type", "architectures")}
    settings["projector_hidden_act"] = "gelu"
    make: Any = LlavaConfig
    with torch.device("meta"):
        plain: Any = LlavaForConditionalGeneration(make(**settings))
    own: Any = model
    plain.model.vision_tower, plain.model.language_model = own.model.vision_tower, own.model.language_model
    plain.lm_head = own.lm_head
    for name, old in PLAIN.items():
        setattr(plain.model.multi_modal_projector, name, own.model.multi_modal_projector.get_submodule(old))
    plain.generation_config = own.generation_config
    # Names as in folders of the hub, which servers expect: a model that is not loaded is saved with transformers' own.
    plain._weight_conversions = get_model_conversion_mapping(plain, add_legacy=False)
    return plain.eval()


def needed_imports(model: "PreTrainedModel") -> list[str]:
    """Modules to import before plain transformers knows every part of a model."""
    config: Any = model.config
    kinds = {config.model_type, getattr(getattr(config, "vision_config", None), "model_type", "")}
    return sorted(OWN[kind] for kind in kinds & OWN.keys())


def export(tuned: Tuned, folder: Path) -> tuple[float, list[str]]:
    """Write model and processor.

    Args:
        tuned: Backbone and adapter; the adapter is merged into the backbone's weights and gone afterwards.
        folder: Must be empty or new.

    Returns:
        The largest change of a logit that merging made, on a question with a grey picture, and the modules that have
        to be imported before plain transformers loads the folder.

    Raises:
        ExportError: The folder holds something, or the adapter cannot be merged.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise ExportError(f"{folder} is not empty and nothing is overwritten. Choose another --out or remove it.")
    before = probe(tuned.loaded.processor, tuned.module)
    model = to_plain(merge(tuned))
    change = float((probe(tuned.loaded.processor, model) - before).abs().max())
    size = sum(parameter.nbytes for parameter in model.parameters())
    with writing(folder, size, "The run is as it was."):
        model.save_pretrained(folder)
        tuned.loaded.processor.save_pretrained(folder)
    return change, needed_imports(model)


def probe(processor: Any, module: Any) -> Any:
    """Logits at the end of a question with a grey picture, fp32."""
    import torch
    from PIL import Image

    images = [Image.new("RGB", (64, 48), "grey")]
    form = chat_format(processor)
    inputs = prompt_inputs(processor, form, [form.prompt([Turn("user", PROBE)], len(images))], [images])
    with torch.inference_mode():
        return module(**{name: value.to(module.device) for name, value in inputs.items()}).logits[:, -1].float()
