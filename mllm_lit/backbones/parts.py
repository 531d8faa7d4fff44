"""A backbone put together from a vision encoder, a connector and an LLM of the user's choice."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mllm_lit.backbones.aspect import side_of
from mllm_lit.backbones.family import CLASS_TOKEN
from mllm_lit.backbones.layout import find_layout
from mllm_lit.backbones.load import Backbone, not_found, read_model, resolve_dtype, resolve_source
from mllm_lit.errors import BackboneError
from mllm_lit.seed import Stream, stream_seed

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from mllm_lit.backbones.composed import ComposedConfig
    from mllm_lit.backbones.connectors import Kind

IMAGE_TOKEN = "<image>"
# How a turn is written where the LLM's own template knows no pictures: {role} tags, then what ends each turn.
TEMPLATES = {
    "vicuna": ("USER: ", " ", "ASSISTANT: ", "{{ eos_token }}", "ASSISTANT:"),
    "chatml": (
        "<|im_start|>user\n",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
        "<|im_end|>\n",
        "<|im_start|>assistant\n",
    ),
}


class ComposedBackbone(Backbone):
    """Any vision encoder (CLIP, SigLIP, DINOv2) + connector + any causal LLM, as one Hugging Face model.

    A new connector is drawn with the run's seed; train it first on captions with everything else frozen.

    Args:
        vision: Hub id (of one revision: ``id@revision``) or folder of the vision encoder, of a CLIP or SigLIP with its
            text side, or of a multimodal LLM whose vision encoder is taken.
        llm: Hub id (or ``id@revision``) or folder of a causal LLM, or of a multimodal LLM whose language model is
            taken.
        connector: ``linear``, ``mlp2x_gelu``, ``resampler``, ``downsample`` (2 x 2), ``downsample_3x3`` or
            ``pixel_shuffle``.
        queries: Embeddings of one picture that a resampler makes.
        feature_layer: Which hidden state of the vision encoder is used, ``-2`` as LLaVA does; of several, the features
            are put side by side.
        features: ``patch`` leaves the class token out, ``cls_patch`` keeps it (``linear`` and ``mlp2x_gelu`` only).
        connector_weights: A ``connector.safetensors`` that a run has written, to start from.
        template: How turns are written: ``vicuna``, ``chatml``, or ``own`` for the chat template in the LLM's folder.
        **shared: The arguments of :class:`Backbone`, ``path`` and ``revision`` aside.

    Raises:
        BackboneError: A revision was given, which cannot be of two sources.
    """

    def __init__(
        self,
        vision: str,
        llm: str,
        connector: "Kind" = "mlp2x_gelu",
        queries: int = 64,
        feature_layer: int | list[int] = -2,
        features: Literal["patch", "cls_patch"] = "patch",
        connector_weights: str | None = None,
        template: str = "vicuna",
        **shared: Any,
    ) -> None:
        super().__init__(path=f"{vision} + {connector} + {llm}", **shared)
        if self.revision is not None:
            raise BackboneError(
                f"revision: {self.revision} could be of {vision} or of {llm}. Give it behind the id that it is of: "
                f"vision: {vision}@{self.revision} or llm: {llm}@{self.revision}."
            )
        self.vision = vision
        self.llm = llm
        self.connector: Kind = connector
        self.queries = queries
        self.feature_layer = feature_layer
        self.features = features
        self.connector_weights = connector_weights
        self.template = template

    def read(self) -> "tuple[PreTrainedModel, ProcessorMixin]":
        """Load both parts and put the connector between them.

        Raises:
            BackboneError: A part is missing or of a kind that does not fit.
        """
        import torch

        from mllm_lit.backbones import composed

        if self.quantization is not None:
            raise BackboneError("Parts are loaded unquantised. Save the composed model and load that folder in 4 bits.")
        dtype = resolve_dtype(self.dtype)
        options: dict[str, Any] = {"dtype": dtype, "attention": self.attn_implementation}
        vision, language = (find_part(text, self.trust_remote_code) for text in (self.vision, self.llm))
        tower = read_vision(vision, options)
        llm = read_llm(language, options)
        tokenizer = read_tokenizer(language)
        grow_embeddings(llm, tokenizer)
        make: Any = composed.ComposedConfig
        config = make(
            vision_config=tower.config,
            text_config=llm.config,
            image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
            vision_feature_layer=self.feature_layer,
            vision_feature_select_strategy=self._select(tower.config),
            connector=self.connector,
            connector_queries=self.queries,
            pad_token_id=tokenizer.pad_token_id,
        )
        with torch.device("meta"):
            model: Any = composed.ComposedForConditionalGeneration(config)
        model.model.vision_tower, model.model.language_model, model.lm_head = tower, llm.model, llm.lm_head
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream_seed(Stream.CONNECTOR))
            connector = composed.ComposedForConditionalGeneration.fresh_connector(config)
        model.model.multi_modal_projector = connector.to(dtype)
        model.tie_weights()
        model.generation_config = llm.generation_config
        model.set_attn_implementation(self.attn_implementation)
        if self.connector_weights is not None:
            load_connector(model, Path(self.connector_weights))
        images = read_image_processor(vision, tower.config, **self.processor)
        return model, make_processor(config, images, tokenizer, self.template)

    def _select(self, vision_config: Any) -> str:
        if self.features == "patch":
            return select_strategy(vision_config)
        if select_strategy(vision_config) == "full" or self.connector not in ("linear", "mlp2x_gelu"):
            raise BackboneError(
                f"features: cls_patch needs a vision encoder with a class token and a linear or mlp2x_gelu connector; "
                f"these are {vision_config.model_type!r} and {self.connector}. Set features: patch."
            )
        return "full"


class Part(NamedTuple):
    """Where a part is read from.

    Attributes:
        source: Folder or hub id.
        revision: On the hub.
        trust_remote_code: Run model code from the hub.
    """

    source: str
    revision: str = "main"
    trust_remote_code: bool = False

    @property
    def options(self) -> dict[str, Any]:
        """For whatever of transformers reads it."""
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}


def find_part(text: str, trust_remote_code: bool = False) -> Part:
    """A part from a folder, a hub id, or ``id@revision``.

    Raises:
        BackboneError: There is no such folder, or a folder was given a revision.
    """
    path, revision = text, ""
    if not Path(text).expanduser().is_dir():
        path, _, revision = text.partition("@")
    return Part(resolve_source(path, revision or None), revision or "main", trust_remote_code)


def read_config(part: Part) -> Any:
    """The config of a part.

    Raises:
        BackboneError: It holds no model, or cannot be fetched.
    """
    from transformers import AutoConfig

    from mllm_lit.backbones import composed, efficientnet_lite  # noqa: F401

    try:
        return AutoConfig.from_pretrained(part.source, **part.options)
    except (OSError, ValueError) as error:
        raise BackboneError(not_found(part.source, error)) from error


def is_multimodal(config: Any) -> bool:
    """Whether a config is of a whole multimodal LLM."""
    from transformers import AutoModelForImageTextToText

    return type(config) in AutoModelForImageTextToText._model_mapping


def read_llm(part: Part, options: dict[str, Any]) -> Any:
    """The causal LLM alone, from its own folder or from that of a multimodal LLM.

    Raises:
        BackboneError: It needs code of its own, which the model that it becomes a part of could not be loaded with.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForImageTextToText

    config = read_config(part)
    if not is_multimodal(config):
        if type(config) not in CONFIG_MAPPING.values():
            raise BackboneError(
                f"{part.source} is an LLM with code of its own ({type(config).__name__}), which transformers cannot "
                "build into another model. Take one that transformers knows, or load a whole model with "
                "mllm_lit.backbones.Backbone."
            )
        return read_model(AutoModelForCausalLM, part.source, config, **options, **part.options)
    whole = read_model(AutoModelForImageTextToText, part.source, config, **options, **part.options)
    blocks = find_layout(whole).blocks.rpartition(".")[0]
    make: Any = AutoModelForCausalLM
    with torch.device("meta"):
        llm = make.from_config(whole.config.get_text_config())
    llm.model, llm.lm_head = whole.get_submodule(blocks), whole.get_output_embeddings()
    llm.generation_config = whole.generation_config
    return llm


def read_vision(part: Part, options: dict[str, Any]) -> Any:
    """The vision encoder alone, from its own folder, from one that has a text side, or from a multimodal LLM's."""
    from transformers import AutoModelForImageTextToText, CLIPVisionModel, Dinov2Model, SiglipVisionModel

    config = read_config(part)
    if is_multimodal(config):
        whole = read_model(AutoModelForImageTextToText, part.source, config, **options, **part.options)
        return whole.get_submodule(find_layout(whole).vision[0])
    kinds: dict[str, Any] = {
        "clip": CLIPVisionModel,
        "clip_vision_model": CLIPVisionModel,
        "siglip": SiglipVisionModel,
        "siglip_vision_model": SiglipVisionModel,
        "dinov2": Dinov2Model,
    }
    if config.model_type not in kinds:
        raise BackboneError(f"{part.source} is a {config.model_type!r}; a vision encoder is one of {sorted(kinds)}.")
    kind, own = kinds[config.model_type], getattr(config, "vision_config", config)
    return read_model(kind, part.source, own, **options, revision=part.revision)


def read_tokenizer(part: Part) -> "PreTrainedTokenizerBase":
    """The LLM's tokenizer with an image token, padding on the left and something to pad with.

    Raises:
        BackboneError: There is none that can be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(part.source, **part.options)
    except (OSError, ValueError) as error:
        raise BackboneError(f"The tokenizer of {part.source} cannot be read: {error}") from error
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]})
    tokenizer.image_token = IMAGE_TOKEN
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def grow_embeddings(llm: Any, tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make room for the image token; a new row is the mean of the old ones, so that no logit stands out."""
    import torch

    rows = llm.get_input_embeddings().weight.shape[0]
    if len(tokenizer) <= rows:
        return
    llm.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in {llm.get_input_embeddings().weight, llm.get_output_embeddings().weight}:
            weight[rows:] = weight[:rows].float().mean(0).to(weight.dtype)


def select_strategy(vision_config: Any) -> str:
    """Whether the vision encoder's first feature is a class token that is left out."""
    if vision_config.model_type in CLASS_TOKEN:
        return "default" if CLASS_TOKEN[vision_config.model_type] else "full"
    raise BackboneError(f"Whether {vision_config.model_type!r} has a class token is not known here.")


def read_image_processor(part: Part, vision_config: Any, **changes: Any) -> Any:
    """The vision encoder's image processor in its Pillow variant, which needs no torchvision."""
    from transformers import AutoProcessor
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    kinds: dict[str, Any] = {
        "clip_vision_model": CLIPImageProcessorPil,
        "siglip_vision_model": SiglipImageProcessorPil,
        "dinov2": BitImageProcessorPil,
    }
    if is_multimodal(read_config(part)):
        auto: Any = AutoProcessor
        return auto.from_pretrained(part.source, **part.options, **changes).image_processor
    return kinds[vision_config.model_type].from_pretrained(part.source, revision=part.revision, **changes)


def make_processor(config: "ComposedConfig", images: Any, tokenizer: Any, template: str) -> "ProcessorMixin":
    """A stock ``LlavaProcessor`` that writes as many image tokens as the connector makes embeddings.

    It counts patches; one patch the size of the picture and the rest as extra tokens gives any number.
    """
    from transformers import LlavaProcessor

    from mllm_lit.backbones.connectors import tokens_per_image

    side = side_of(images)
    vision: Any = config.vision_config
    if side != vision.image_size:
        raise BackboneError(
            f"The image processor makes pictures of {side} pixels a side, the vision encoder takes {vision.image_size}."
        )
    make: Any = LlavaProcessor
    return make(
        images,
        tokenizer,
        patch_size=vision.image_size,
        num_additional_image_tokens=tokens_per_image(config.connector, config.sizes()) - 1 + keeps_class_token(config),
        vision_feature_select_strategy="full",
        chat_template=own_template(tokenizer) if template == "own" else chat_template(template),
    )


def keeps_class_token(config: "ComposedConfig") -> bool:
    """Whether the connector gets the vision encoder's class token."""
    return config.vision_feature_select_strategy == "full" and select_strategy(config.vision_config) == "default"


def own_template(tokenizer: Any) -> str:
    """The tokenizer's chat template.

    Raises:
        BackboneError: There is none, or it shows no pictures.
    """
    turn = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
    if not tokenizer.chat_template or IMAGE_TOKEN not in tokenizer.apply_chat_template(turn, tokenize=False):
        raise BackboneError(
            f"template: own, but the LLM's folder has no chat template that writes {IMAGE_TOKEN} for a picture. Set "
            f"template to one of {sorted(TEMPLATES)}."
        )
    return str(tokenizer.chat_template)


def chat_template(name: str) -> str:
    """A Jinja template with pictures ahead of a turn's text, each on a line of its own."""
    if name not in TEMPLATES:
        raise BackboneError(f"template {name!r} is unknown; there are own and {sorted(TEMPLATES)}.")
    user, user_end, assistant, assistant_end, ask = TEMPLATES[name]
    start = "{{ bos_token }}" if name == "vicuna" else ""
    system = "" if name == "vicuna" else "<|im_start|>system\n"
    body = (
        "{%- if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{%- for part in message['content'] if part['type'] == 'image' %}{{ '" + IMAGE_TOKEN + "\\n' }}{% endfor %}"
        "{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    )

    def quoted(text: str) -> str:
        return text if text.startswith("{{") or not text else "{{ " + repr(text) + " }}"

    return (
        start + "{%- for message in messages %}"
        "{%- if message['role'] == 'user' %}"
        + quoted(user)
        + "{%- elif message['role'] == 'assistant' %}"
        + quoted(assistant)
        + "{%- else %}"
        + quoted(system)
        + "{% endif %}"
        + body
        + "{%- if message['role'] == 'assistant' %}"
        + quoted(assistant_end)
        + "{%- else %}"
        + quoted(user_end)
        + "{% endif %}{% endfor %}{%- if add_generation_prompt %}"
        + quoted(ask)
        + "{% endif %}"
    )


def load_connector(model: Any, file: Path) -> None:
    """Start the connector from the weights of an earlier run.

    Raises:
        BackboneError: The file is missing, or its tensors are not those of this connector.
    """
    import torch
    from safetensors.torch import load_file

    if not file.is_file():
        raise BackboneError(f"connector_weights: there is no file {file.absolute()}.")
    given = load_file(file)
    own = {name: p for name, p in model.named_parameters() if name.startswith("model.multi_modal_projector.")}
    wrong = sorted(name for name in own.keys() | given.keys() if _shape(own, name) != _shape(given, name))
    if wrong:
        told = [f"{name}: {_shape(given, name)} in the file, {_shape(own, name)} in the model" for name in wrong[:3]]
        raise BackboneError(f"{file} is of another connector, {len(wrong)} tensors differ: {'; '.join(told)}.")
    with torch.no_grad():
        for name, tensor in given.items():
            own[name].copy_(tensor)


def _shape(tensors: Any, name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
