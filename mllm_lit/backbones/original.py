"""Weights in their authors' own formats: LLaVA-1.5 and ShareGPT4V (one folder), VILA-1.5 and NVILA (three inside)."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.backbones.aspect import Aspect, with_aspect
from mllm_lit.backbones.load import Backbone, read_model, resolve_dtype, resolve_source
from mllm_lit.backbones.parts import (
    IMAGE_TOKEN,
    Part,
    find_part,
    grow_embeddings,
    make_processor,
    read_config,
    read_image_processor,
    read_tokenizer,
    read_vision,
    select_strategy,
)
from mllm_lit.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

# Names in both formats, those of VILA behind the name of their subfolder, and what they are called here.
KEYS = (
    (r"model\.mm_projector\.0\.", "model.multi_modal_projector.layers.0."),
    (r"model\.mm_projector\.2\.", "model.multi_modal_projector.layers.2."),
    (r"model\.mm_projector\.(weight|bias)", r"model.multi_modal_projector.layers.0.\1"),
    (r"mm_projector\.layers\.", "model.multi_modal_projector.layers."),
    (r"model\.vision_tower\.vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
    (r"vision_tower\.(?:vision_model\.)?", "model.vision_tower."),
    (r"(?:llm\.)?model\.(embed_tokens|layers|norm)\.", r"model.language_model.\1."),
    (r"(?:llm\.)?lm_head\.", "lm_head."),
)
# Buffers that older transformers stored and newer ones compute.
COMPUTED = re.compile(r"\.(rotary_emb\.inv_freq|position_ids)$")
CONNECTORS = {
    "linear": "linear",
    "mlp2x_gelu": "mlp2x_gelu",
    "mlp_downsample": "downsample",
    "mlp_downsample_2x2_fix": "downsample",
    "mlp_downsample_3x3_fix": "downsample_3x3",
}
ASPECTS: dict[str, Aspect] = {"pad": "pad", "resize": "resize", "square": "crop"}
LLMS = {"llava": "llama", "llava_llama": "llama", "share4v": "llama", "llava_mistral": "mistral", "llava_qwen": "qwen2"}


class OriginalBackbone(Backbone):
    """A checkpoint as its authors published it: ``liuhaotian/llava-v1.5-7b``, ``Efficient-Large-Model/VILA1.5-3b``.

    Args:
        path: Hub id or folder.
        vision: Hub id (or ``id@revision``) or folder of the vision encoder of a LLaVA-format checkpoint; ``None`` for
            the one its config names. Weights of it inside the checkpoint take precedence. Not used for VILA, which
            brings its own.
        template: How turns are written: ``vicuna`` or ``chatml``.
        **shared: The arguments of :class:`Backbone`; ``aspect: None`` is what the checkpoint's config says.
    """

    def __init__(
        self,
        path: str,
        vision: str | None = None,
        template: str = "vicuna",
        **shared: Any,
    ) -> None:
        super().__init__(path=path, **shared)
        self.vision = vision
        self.template = template

    def read(self) -> tuple[Any, Any]:
        """Map the names of the tensors, load them all, and make a processor.

        Raises:
            BackboneError: The folder is of another format, or any tensor is missing, unknown or of another shape.
        """
        from mllm_lit.backbones.composed import ComposedConfig, ComposedForConditionalGeneration

        if self.quantization is not None:
            raise BackboneError("Save this checkpoint in the Hugging Face format first, then load that in 4 or 8 bits.")
        folder = download(resolve_source(self.path, self.revision), self.revision)
        raw = _json(folder / "config.json")
        vila = "llm_cfg" in raw
        if not vila and "mm_projector_type" not in raw:
            raise BackboneError(
                f"{folder} has neither llm_cfg nor mm_projector_type in its config.json, so it is not in the format of "
                "LLaVA-1.5, ShareGPT4V or VILA. Load a Hugging Face folder with mllm_lit.backbones.Backbone."
            )
        dtype = resolve_dtype(self.dtype)
        trust = self.trust_remote_code
        inside = Part(str(folder / "llm" if vila else folder), trust_remote_code=trust)
        vision = (
            Part(str(folder / "vision_tower"), trust_remote_code=trust)
            if vila
            else find_part(self.vision or raw["mm_vision_tower"], trust)
        )
        tensors = dict(renamed(_vila_tensors(folder) if vila else read_tensors(folder)))
        vision_config: Any
        if any(name.startswith("model.vision_tower.") for name in tensors):
            whole = read_config(vision)
            vision_config = getattr(whole, "vision_config", whole)
        else:
            tower = read_vision(vision, {"dtype": dtype, "attention": self.attn_implementation})
            vision_config = tower.config
            tensors |= {f"model.vision_tower.{name}": tensor for name, tensor in tower.state_dict().items()}
            tensors = {name: tensor for name, tensor in tensors.items() if not COMPUTED.search(name)}
        kind = _json(folder / "mm_projector" / "config.json")["mm_projector_type"] if vila else raw["mm_projector_type"]
        if kind not in CONNECTORS:
            raise BackboneError(f"{folder} has the connector {kind!r}; known are {sorted(CONNECTORS)}.")
        make: Any = ComposedConfig
        config = make(
            vision_config=vision_config,
            text_config=_text_config(inside, raw),
            vision_feature_layer=raw.get("mm_vision_select_layer", -2),
            vision_feature_select_strategy=select_strategy(vision_config),
            connector=CONNECTORS[kind],
            # VILA-1.5 was trained with columns first; the "fix" in later names is about just that.
            connector_transposed=kind == "mlp_downsample",
        )
        model, told = read_model(
            ComposedForConditionalGeneration,
            None,
            config,
            self.attn_implementation,
            state_dict=tensors,
            dtype=dtype,
            output_loading_info=True,
        )
        _complete(folder, told, config)
        tokenizer = read_tokenizer(inside)
        grow_embeddings(model, tokenizer)
        model.config.image_token_index = tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)
        images = with_aspect(read_image_processor(vision, vision_config, **self.processor), self._aspect(raw))
        return model, make_processor(model.config, images, tokenizer, self.template)

    def _aspect(self, raw: dict[str, Any]) -> Aspect:
        if self.aspect is not None:
            return self.aspect
        published = raw.get("image_aspect_ratio") or "square"
        if published not in ASPECTS:
            raise BackboneError(
                f"{self.path} cuts pictures into tiles (image_aspect_ratio: {published}), which is not done here. "
                "Set aspect: resize to show it the whole picture once."
            )
        return ASPECTS[published]


def download(source: str, revision: str | None = None) -> Path:
    """The folder of a revision of a hub id, fetched if need be; a local folder is itself."""
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, revision=revision))
    except Exception as error:
        raise BackboneError(
            f"{source!r} (revision {revision or 'main'}) is no local folder and could not be fetched from the hub "
            f"({type(error).__name__}). Without "
            "network, download it elsewhere (`hf download ID --local-dir FOLDER`) and give that folder."
        ) from error


def read_tensors(folder: Path) -> "Iterator[tuple[str, Tensor]]":
    """Every tensor of a folder's safetensors, or of its pickles, which may hold tensors only.

    Raises:
        BackboneError: There are neither.
    """
    import torch
    from safetensors import safe_open

    if files := sorted(folder.glob("*.safetensors")):
        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 (not a dict)
                    yield name, opened.get_tensor(name)
        return
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise BackboneError(f"{folder} holds no *.safetensors and no pytorch_model*.bin.")
    for file in files:
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def renamed(tensors: "Iterator[tuple[str, Tensor]]") -> "Iterator[tuple[str, Tensor]]":
    """Tensors under their names here; those without one keep theirs, to be reported."""
    for name, tensor in tensors:
        if COMPUTED.search(name):
            continue
        for pattern, replacement in KEYS:
            new, count = re.subn(f"^{pattern}", replacement, name)
            if count:
                break
        yield (new if count else name), tensor


def _vila_tensors(folder: Path) -> "Iterator[tuple[str, Tensor]]":
    for part in ("llm", "vision_tower", "mm_projector"):
        prefix = "" if part == "mm_projector" else f"{part}."
        for name, tensor in read_tensors(folder / part):
            yield (f"mm_projector.{name}" if not prefix else f"{prefix}{name}"), tensor


def _text_config(part: Part, raw: dict[str, Any]) -> Any:
    from transformers import CONFIG_MAPPING

    if "llm_cfg" in raw:
        return read_config(part)
    if raw["model_type"] not in LLMS:
        raise BackboneError(f"{part.source} has the model type {raw['model_type']!r}; known are {sorted(LLMS)}.")
    kind: Any = CONFIG_MAPPING[LLMS[raw["model_type"]]]
    known = kind().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    return kind(**{key: value for key, value in raw.items() if key in known})


def _complete(folder: Path, told: dict[str, Any], config: Any) -> None:
    """Refuse a checkpoint of which any tensor is missing, unknown or of another shape."""
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    missing = sorted(set(told["missing_keys"]) - tied)
    unexpected, mismatched = sorted(told["unexpected_keys"]), sorted(str(key) for key in told["mismatched_keys"])
    if missing or unexpected or mismatched:
        raise BackboneError(
            f"{folder} does not hold exactly this model. "
            f"Missing ({len(missing)}): {missing[:8]}. Unexpected ({len(unexpected)}): {unexpected[:8]}. "
            f"Of another shape ({len(mismatched)}): {mismatched[:8]}."
        )


def _json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise BackboneError(f"There is no {file}. Expected a folder in the format of LLaVA-1.5, ShareGPT4V or VILA.")
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return content
