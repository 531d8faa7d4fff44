"""From a hub id or a folder to a model, its processor and its layout."""

import copy
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from mllm_lit.backbones.aspect import Aspect, with_aspect
from mllm_lit.backbones.identity import identity_of
from mllm_lit.backbones.layout import Layout, find_layout
from mllm_lit.errors import BackboneError, in_range

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel, ProcessorMixin

EMBEDDED = Path(__file__).parent / "embedded"
Checkpointing = Literal["llm", "vision", "both"]


@dataclass
class LoadedBackbone:
    """A model ready for an adapter.

    Attributes:
        model: A Hugging Face image-text-to-text model in eval mode.
        processor: Its processor (tokenizer, image processor, chat template).
        layout: Where the model keeps vision, connector and LLM.
        identity: A digest of architecture and weights, the same in every dtype.
        source: The path it was loaded from, for reports.
    """

    model: "PreTrainedModel"
    processor: "ProcessorMixin"
    layout: Layout
    identity: str
    source: str


class Backbone:
    """What to load and how; costs nothing until :meth:`load`.

    Args:
        path: A hub id, a local folder, or ``embedded`` for the small model that comes with the package.
        dtype: Of the weights; ``auto`` is bf16 where a CUDA device supports it, in a run :func:`frozen_dtype`, else
            fp32. Adapters keep what they train in fp32, whatever this says.
        attn_implementation: As in transformers: ``sdpa``, ``eager``, ``flash_attention_2``.
        gradient_checkpointing: Recompute activations of one role, or of both, in the backward pass (non-reentrant).
        quantization: Load the LLM's linear layers through bitsandbytes; for adapters on CUDA only.
        trust_remote_code: Run model code from the hub. Leave it off unless you have read that code.
        max_length: Longest sequence of tokens, ``None`` for the tokenizer's own limit.
        revision: Branch, tag or commit on the hub; refused for a folder, which holds one version.
        aspect: How a picture becomes a square, where the vision encoder takes squares: ``pad``, ``resize`` or
            ``crop``; ``None`` leaves it to the checkpoint. Training and evaluation always agree.
        processor: Keyword arguments of the processor, such as ``{max_pixels: 602112}``.
        layout: The fields of :class:`~mllm_lit.backbones.Layout` for an architecture that is not recognised.
        compile: Compile the LLM's blocks for training (``torch.compile``); needs a C++ compiler on a CPU. Evaluation
            stays as it is. Not with ``quantization`` nor FSDP2.
    """

    def __init__(
        self,
        path: str = "embedded",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        attn_implementation: str = "sdpa",
        gradient_checkpointing: Checkpointing | None = None,
        quantization: Literal["4bit", "8bit"] | None = None,
        trust_remote_code: bool = False,
        max_length: int | None = None,
        revision: str | None = None,
        aspect: Aspect | None = None,
        processor: dict[str, Any] | None = None,
        layout: dict[str, str | list[str]] | None = None,
        compile: bool = False,
    ) -> None:
        if compile and quantization is not None:
            raise BackboneError(
                f"backbone.compile: true with backbone.quantization: {quantization}: kernels of bitsandbytes cannot "
                "be compiled. Set one of the two to its default."
            )
        self.compile = compile
        self.path = path
        self.dtype = dtype
        self.attn_implementation = attn_implementation
        self.gradient_checkpointing: Checkpointing | None = gradient_checkpointing
        self.quantization = quantization
        self.trust_remote_code = trust_remote_code
        self.max_length = in_range("backbone.max_length", max_length, 1)
        self.revision = revision
        self.aspect: Aspect | None = aspect
        self.processor = processor or {}
        self.layout = layout

    def load(self) -> LoadedBackbone:
        """Read model and processor, on the CPU unless quantised.

        Raises:
            BackboneError: The path is no model, is not reachable, or its architecture takes no images.
            LayoutError: The architecture is unknown and ``layout`` does not describe it.
        """
        from mllm_lit.backbones.attention import use_for_sdpa

        use_for_sdpa()
        model, processor = self.read()
        self._prepare(processor)
        model.eval()
        layout = find_layout(model, self.layout)
        if self.gradient_checkpointing is not None:
            checkpoint_activations(model, layout, self.gradient_checkpointing)
        return LoadedBackbone(model, processor, layout, identity_of(model), self.path)

    def load_processor(self) -> "tuple[ProcessorMixin, int]":
        """The processor as :meth:`load` gives it, and most tokens that model and tokenizer take.

        Weights are read only where they are stored with it (original and composed checkpoints).

        Raises:
            BackboneError: As :meth:`load` does.
        """
        if type(self).read is not Backbone.read:
            loaded = self.load()
            return loaded.processor, self.max_length or context(loaded)
        from mllm_lit.backbones import composed, efficientnet_lite  # noqa: F401

        source = resolve_source(self.path, self.revision)
        config = self._config(source)
        processor = self._processor(source)
        self._prepare(processor)
        return processor, self.max_length or _limit(config, processor)

    def _prepare(self, processor: Any) -> None:
        if self.max_length is not None:
            processor.tokenizer.model_max_length = self.max_length
        if self.aspect is not None:
            processor.image_processor = with_aspect(processor.image_processor, self.aspect)

    @property
    def is_embedded(self) -> bool:
        """Whether it is the small model that comes with the package, or has a part of it."""
        return "embedded" in self.path.split(" + ")

    def read(self) -> "tuple[Any, Any]":
        """The model and its processor, as they are stored."""
        import torch
        from transformers import AutoModelForImageTextToText

        # Their import makes architectures of this package known to transformers.
        from mllm_lit.backbones import composed, efficientnet_lite  # noqa: F401

        source = resolve_source(self.path, self.revision)
        config = self._config(source)
        extra: dict[str, Any] = {}
        if self.quantization is not None:
            from mllm_lit.backbones.quantize import keep_gradients, quantization_config

            auto: Any = AutoModelForImageTextToText
            with torch.device("meta"):
                shape = auto.from_config(config, trust_remote_code=self.trust_remote_code)
            quantized = quantization_config(self.quantization, find_layout(shape, self.layout))
            device = "cuda" if torch.cuda.is_available() else "cpu"
            extra = {"quantization_config": quantized, "device_map": {"": device}}
        model = read_model(
            AutoModelForImageTextToText,
            source,
            config,
            self.attn_implementation,
            dtype=resolve_dtype(self.dtype),
            trust_remote_code=self.trust_remote_code,
            revision=self.revision or "main",
            **extra,
        )
        if self.quantization is not None:
            keep_gradients(model)
        return model, self._processor(source)

    def _config(self, source: str) -> "PreTrainedConfig":
        from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig

        revision = self.revision or "main"
        try:
            raw, _ = PreTrainedConfig.get_config_dict(source, revision=revision)
            if "mm_projector_type" in raw or "llm_cfg" in raw:
                # Some of these share a model type with transformers, which would load them without their connector.
                raise BackboneError(
                    f"{source} is in its authors' own format. Load it with class_path: "
                    "mllm_lit.backbones.OriginalBackbone and the same path."
                )
            config = AutoConfig.from_pretrained(source, trust_remote_code=self.trust_remote_code, revision=revision)
        except (OSError, ValueError) as error:
            raise BackboneError(not_found(source, error)) from error
        if type(config) not in AutoModelForImageTextToText._model_mapping and not self.trust_remote_code:
            raise BackboneError(
                f"{source} holds a {config.model_type!r} model, which takes no image and text to text in transformers. "
                "Expected a multimodal LLM such as llava, qwen2_5_vl or smolvlm."
            )
        return config

    def _processor(self, source: str) -> "ProcessorMixin":
        from transformers import AutoProcessor

        auto: Any = AutoProcessor
        try:
            return auto.from_pretrained(
                source, trust_remote_code=self.trust_remote_code, revision=self.revision or "main", **self.processor
            )
        except (OSError, ValueError, ImportError, AttributeError) as error:
            # Without torchvision, transformers fails on processors that could also take a video, with whatever error.
            missing = [name for name in ("torchvision", "num2words") if importlib.util.find_spec(name) is None]
            raise BackboneError(
                f"The weights of {source} were read, its processor was not: {type(error).__name__}: {error}\n"
                "The folder needs processor_config.json (or preprocessor_config.json) and the tokenizer's files. "
                "Qwen-VL, InternVL, SmolVLM, LLaVA-OneVision and Pixtral also need torchvision (the build that "
                f"matches torch), SmolVLM num2words; missing here: {missing or 'neither'}."
            ) from error


def read_model(kind: Any, source: str | None, config: Any, attention: str, **options: Any) -> Any:
    """``kind.from_pretrained``.

    Raises:
        BackboneError: The architecture, or this installation, cannot run that implementation of attention.
    """
    try:
        return kind.from_pretrained(source, config=copy.deepcopy(config), attn_implementation=attention, **options)
    except (ValueError, ImportError) as error:
        works = [name for name in ("sdpa", "eager") if _builds(kind, config, name, options)]
        if not works or _builds(kind, config, attention, options):
            raise  # for another reason
        raise BackboneError(
            f"{source or kind.__name__} is a {config.model_type!r} model, which cannot run here with "
            f"model.backbone.attn_implementation: {attention} ({str(error).splitlines()[0]}). Set "
            f"model.backbone.attn_implementation to {works[0]}."
        ) from error


def _builds(kind: Any, config: Any, attention: str, options: Mapping[str, Any]) -> bool:
    import torch

    trust = {"trust_remote_code": options.get("trust_remote_code", False)} if hasattr(kind, "from_config") else {}
    make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
    try:
        with torch.device("meta"):
            make(copy.deepcopy(config), attn_implementation=attention, **trust)
    except (ValueError, ImportError):
        return False
    return True


def context(loaded: LoadedBackbone) -> int:
    """Most tokens that a model and its tokenizer take."""
    return _limit(loaded.model.config, loaded.processor)


def _limit(config: Any, processor: Any) -> int:
    return min(config.get_text_config().max_position_embeddings, processor.tokenizer.model_max_length)


def resolve_source(path: str, revision: str | None = None) -> str:
    """What transformers is to load: the embedded folder, SmolLM2's in the cache, a local one, or a hub id.

    Raises:
        BackboneError: The path cannot be a hub id and there is no such folder, or a folder was given a revision; or it
            is ``smollm2`` and its package is not installed.
    """
    local = EMBEDDED if path == "embedded" else Path(path).expanduser()
    if path == "smollm2" and not local.is_dir():
        from mllm_lit.backbones.smollm2 import smollm2_folder

        local = smollm2_folder()
    if local.is_dir():
        if revision is not None:
            raise BackboneError(
                f"The revision {revision!r} is of a hub id, but {path} is a folder, which holds one version. Leave the "
                "revision out (model.backbone.revision: null), or give the hub id."
            )
        return str(local)
    if _is_path(path):
        raise BackboneError(not_found(path))
    return path


def resolve_dtype(name: str) -> "torch.dtype":
    """The torch dtype of a name; ``auto`` avoids bf16 on CPUs, most of which emulate it about 100 times slower."""
    import torch

    if name == "auto":
        name = "bfloat16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "float32"
    dtypes: Mapping[str, torch.dtype] = {
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
    if name not in dtypes:
        raise BackboneError(f"dtype {name!r} is unknown; expected auto or one of {list(dtypes)}.")
    return dtypes[name]


def has_amx() -> bool:
    """Whether this CPU multiplies matrices of bf16 in tiles, several times as fast as those of fp32."""
    import torch

    probe = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return probe is not None and bool(probe())


def frozen_dtype(precision: str) -> Literal["float32", "bfloat16"]:
    """What ``dtype: auto`` means in a run: bf16 under a precision and on a machine that compute in it.

    Args:
        precision: The trainer's.
    """
    if "bf16" in precision and (has_amx() or str(resolve_dtype("auto")) == "torch.bfloat16"):
        return "bfloat16"
    return "float32"


def checkpoint_activations(model: Any, layout: Layout, roles: Checkpointing) -> None:
    """Turn on non-reentrant gradient checkpointing in the LLM, the vision encoder, or both.

    It takes effect in training mode only, so a frozen vision encoder in eval mode is never recomputed.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    # transformers has embeddings and patches ask for gradients, which reentrant recomputation needs. Ours is not, and
    # a frozen vision encoder would be run backwards for nothing.
    model.disable_input_require_grads()
    wanted = ("llm", "vision") if roles == "both" else (roles,)
    for name, module in model.named_modules():
        if isinstance(module, GradientCheckpointingLayer) and layout.role_of(name) not in wanted:
            module.gradient_checkpointing = False


def _is_path(source: str) -> bool:
    """Whether a string cannot be a hub id, which has at most one slash and does not begin like a path."""
    return source.startswith(("/", ".", "~")) or source.count("/") > 1


def not_found(source: str, error: Exception | None = None) -> str:
    """The text of an error: what was tried, what is there, and how to give a folder."""
    path = Path(source).expanduser()
    remedy = (
        "Without network, download the model elsewhere (`hf download ID --local-dir FOLDER`) and set "
        "model.backbone.path to that folder; path: embedded needs neither."
    )
    if path.is_dir():
        there = sorted(entry.name for entry in path.iterdir())[:20]
        return f"{path} is a folder without a readable config.json (it holds {there}): {error}"
    if error is None:
        return f"No backbone at {source!r}: there is no folder {path.absolute()}. Correct the path. {remedy}"
    return (
        f"No backbone at {source!r}: it is no local folder (tried {path.absolute()}), and as a Hugging Face hub id it "
        f"could not be fetched ({type(error).__name__}: {str(error).splitlines()[0]}). {remedy}"
    )
