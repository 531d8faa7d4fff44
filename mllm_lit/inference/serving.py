"""Whether vLLM and llama.cpp's converters read a folder: the names of its tensors held against those they expect.

From the sources of vLLM 0.33.0 (``hf_to_vllm_mapper``, ``get_mm_mapping``, ``PEFTHelper``) and of llama.cpp
(``convert_lora_to_gguf.py``, ``conversion/``, gguf 0.19.0). A name that they do not know is often passed over in
silence: then the served model is the backbone.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import safe_open

from mllm_lit.adapters.files import CONNECTOR_FILE, DELTA_FILE, PEFT_CONFIG
from mllm_lit.errors import AdapterError

LLAVA = {
    "model.language_model.": "language_model.model.",
    "model.vision_tower.": "vision_tower.",
    "model.multi_modal_projector.": "multi_modal_projector.",
    "model.image_newline": "image_newline",
    "lm_head.": "language_model.lm_head.",
}
QWEN = {"model.language_model.": "language_model.model.", "model.visual.": "visual.", "model.": "language_model.model."}
QWEN |= {"lm_head.": "language_model.lm_head."}
NESTED = ("clip_vision_model", "siglip_vision_model")
"""Vision encoders that vLLM and llama.cpp keep in a module ``vision_model``, which transformers 5 leaves out."""
LLAVA_VISION = (*NESTED, "pixtral")
"""Vision encoders with which vLLM builds a LLaVA."""
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Values of vLLM's ``--max-lora-rank``."""
PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Values of peft's ``init_lora_weights`` that vLLM takes, beside true and false."""
LORA_KEYS = (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Served:
    """What servers know of an architecture.

    Attributes:
        llm: Where vLLM has the blocks of the LLM.
        tower: Where it has vision encoder and connector; a name in braces depends on the vision encoder.
        renamed: Beginnings of names, and what vLLM makes of them; the longest is taken.
        lora: Whether vLLM takes LoRA: of the LLM; of the tower, too (``--enable-tower-connector-lora``); or of nothing.
        gguf_lora: Beginning of the LLM's names from which ``convert_lora_to_gguf.py`` makes ``model.``; ``None`` for
            none.
        gguf: Whether ``convert_hf_to_gguf.py`` converts the LLM, and with ``--mmproj`` the vision encoder.
    """

    llm: str = "language_model.model."
    tower: tuple[str, ...] = ("vision_tower.{nested}", "multi_modal_projector.", "image_newline")
    renamed: Mapping[str, str] = field(default_factory=lambda: LLAVA)
    lora: str = "tower"
    gguf_lora: str | None = "model.language_model."
    gguf: tuple[bool, bool] = (False, False)


QWEN_SERVED = Served(tower=("visual.",), renamed=QWEN, gguf=(True, True))
IDEFICS = Served(
    llm="model.text_model.",
    tower=("model.vision_model.", "model.connector."),
    renamed={},
    gguf_lora=None,
    gguf=(True, True),
)
SERVED = {
    "llava": Served(gguf=(True, False)),
    "llava_next": Served(),
    "llava_onevision": Served(lora="none"),
    "qwen2_vl": QWEN_SERVED,
    "qwen2_5_vl": QWEN_SERVED,
    "qwen3_vl": QWEN_SERVED,
    "internvl": Served(lora="llm"),
    "paligemma": Served(),
    "gemma3": Served(gguf=(True, True)),
    "mistral3": Served(lora="llm", gguf=(True, True)),
    "idefics3": IDEFICS,
    "smolvlm": IDEFICS,
}
"""By the ``model_type`` of the config."""


def renamed(name: str, served: Served) -> str:
    """The name of a tensor in vLLM."""
    begins = [old for old in served.renamed if name.startswith(old)]
    old = max(begins, key=len, default="")
    return served.renamed[old] + name[len(old) :] if old else name


def towers(served: Served, vision: str) -> tuple[str, ...]:
    """Where vLLM has vision encoder and connector, by the vision encoder's ``model_type``."""
    nested = "vision_model." if vision in NESTED else ""
    return tuple(place.format(nested=nested) for place in served.tower)


def names_in(folder: Path) -> list[str]:
    """The tensors of the safetensors files of a folder."""
    names: list[str] = []
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            names += opened.keys()
    return names


def some(names: Iterable[str]) -> str:
    """A few of many names."""
    names = sorted(names)
    return f"{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")


def kinds(config: Any) -> tuple[str, str]:
    """``model_type`` of a model and of its vision encoder, from a config or what ``config.json`` holds."""
    given = config if isinstance(config, Mapping) else config.to_dict()
    return given["model_type"], (given.get("vision_config") or {}).get("model_type", "")


def adapter_faults(folder: Path, config: Any) -> dict[str, list[str]]:
    """What keeps servers from reading a run's adapter whole.

    Args:
        folder: ``adapter/`` of a run.
        config: Of its backbone.

    Returns:
        For ``vLLM`` and ``llama.cpp``, sentences; none where all of it is read.

    Raises:
        AdapterError: The folder holds nothing that was trained.
    """
    beside = [file for file in (CONNECTOR_FILE, DELTA_FILE) if (folder / file).is_file()]
    if not (folder / PEFT_CONFIG).is_file():
        if not beside:
            raise AdapterError(f"{folder} holds neither {PEFT_CONFIG} nor {CONNECTOR_FILE} nor {DELTA_FILE}.")
        return dict.fromkeys(("vLLM", "llama.cpp"), ["It is no adapter of peft, but tensors of the backbone."])
    settings = json.loads((folder / PEFT_CONFIG).read_text(encoding="utf-8"))
    if settings["peft_type"] != "LORA":
        return dict.fromkeys(("vLLM", "llama.cpp"), [f"It is {settings['peft_type']}; only LoRA is read."])
    kind, vision = kinds(config)
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as opened:
        names = [name.removeprefix("base_model.model.") for name in opened.keys()]  # noqa: SIM118 (not a dict)
    apart = [f"{file} is passed over in silence." for file in beside]
    served = SERVED.get(kind)
    if served is None:
        unknown = [f"The architecture {kind} is not known to be read."]
        return {"vLLM": [*unknown, *apart], "llama.cpp": [*unknown, *apart]}
    return {
        "vLLM": [*_vllm_settings(settings), *_vllm_names(names, served, vision), *apart],
        "llama.cpp": [*_llama_cpp(settings, names, served), *apart],
    }


def _vllm_settings(settings: dict[str, Any]) -> list[str]:
    faults = []
    if settings.get("use_dora"):
        faults.append("DoRA is refused.")
    init = settings.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in PLAIN_INITS:
        faults.append(f"init_lora_weights {init} is refused.")
    if settings.get("modules_to_save"):
        faults.append(f"modules_to_save {settings['modules_to_save']} is refused.")
    if settings.get("r", 0) > RANKS[-1]:
        faults.append(f"Its rank is {settings['r']}; up to {RANKS[-1]} is taken.")
    return faults


def _vllm_names(names: Iterable[str], served: Served, vision: str) -> list[str]:
    if served.lora == "none":
        return ["LoRA of this architecture is refused."]
    there = (served.llm, *(towers(served, vision) if served.lora == "tower" else ()))
    strange = [name for name in names if not name.endswith(LORA_KEYS)]
    passed = [name for name in names if name not in strange and not renamed(name, served).startswith(there)]
    faults = [f"{some(strange)}: no tensor of plain LoRA, refused."] if strange else []
    return [*faults, *([f"{some(passed)}: passed over in silence."] if passed else [])]


def _llama_cpp(settings: dict[str, Any], names: Iterable[str], served: Served) -> list[str]:
    faults = []
    if settings.get("use_rslora"):
        faults.append("rsLoRA is read as plain LoRA, in silence: its scale is wrong.")
    if settings.get("alpha_pattern"):
        faults.append("alpha_pattern is passed over in silence: scales are wrong.")
    strange = [name for name in names if not name.endswith(LORA_KEYS)]
    if strange:
        faults.append(f"{some(strange)}: no tensor of plain LoRA, refused.")
    if served.gguf_lora is None or not served.gguf[0]:
        return [*faults, "Adapters of this architecture cannot be converted."]
    other = [name for name in names if name not in strange and not name.startswith(served.gguf_lora)]
    return [*faults, *([f"{some(other)}: not of the LLM, refused."] if other else [])]


def export_faults(folder: Path) -> dict[str, list[str]]:
    """As :func:`adapter_faults`, of an exported folder."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    kind, vision = kinds(config)
    served = SERVED.get(kind)
    if served is None:
        return dict.fromkeys(("vLLM", "llama.cpp"), [f"The architecture {kind} is not known to be read."])
    there = (served.llm, served.renamed.get("lm_head.", "lm_head."), *towers(served, vision))
    strange = [name for name in names_in(folder) if not renamed(name, served).startswith(there)]
    vllm = [f"{some(strange)}: there is no such module."] if strange else []
    if kind.startswith("llava") and vision not in LLAVA_VISION:
        vllm.append(f"The vision encoder {vision} is refused.")
    text, picture = served.gguf
    if kind == "llava" and vision == "pixtral":
        picture = True
    parts = {"LLM": text, "vision encoder and connector": picture}
    missing = " and its ".join(part for part, converted in parts.items() if not converted)
    return {"vLLM": vllm, "llama.cpp": [f"There is no converter for its {missing}."] if missing else []}


def report(folder: Path, faults: Mapping[str, list[str]]) -> str:
    """A line for each server."""
    said = {server: f"not to be served by it. {' '.join(told)}" for server, told in faults.items() if told}
    return "\n".join(f"{folder}, {server}: {said.get(server, 'all is read.')}" for server in faults)
