"""What is shipped of the multimodal LLM made out of SmolLM2: connector and LoRA, the language model left out."""

import json
import shutil
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from safetensors.torch import load_file, save_file

from mllm_lit.adapters.files import INFO_FILE, PEFT_CONFIG
from mllm_lit.backbones.smollm2 import CONNECTOR, bare_llava
from mllm_lit.seed import seeded


def pack(adapter: Path, out: Path) -> None:
    """Write connector and LoRA of a run in bf16, bound to the parts with that connector in place.

    Args:
        adapter: The run's ``adapter`` folder.
        out: As :data:`TRAINED`.
    """
    (out / "adapter").mkdir(parents=True, exist_ok=True)
    for file, place in ((CONNECTOR, out), (SAFETENSORS_WEIGHTS_NAME, out / "adapter")):
        tensors = {name: tensor.bfloat16().contiguous() for name, tensor in load_file(adapter / file).items()}
        save_file(tensors, place / file, metadata={"format": "pt"})
    shutil.copy(adapter / PEFT_CONFIG, out / "adapter")
    with seeded(0):
        identity = bare_llava(out / CONNECTOR).load().identity
    info = json.loads((adapter / INFO_FILE).read_text(encoding="utf-8")) | {"backbone": identity}
    (out / "adapter" / INFO_FILE).write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
    print(f"{sum(file.stat().st_size for file in out.rglob('*') if file.is_file()) / 1e6:.1f} MB in {out}")
