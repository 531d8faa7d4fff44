"""A script for a process without this package: put a saved adapter on a model with peft alone, and give its logits."""

import copy
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForImageTextToText


def main(backbone: Path, batch: Path, folders: list[Path]) -> None:
    """Write ``logits.pt`` into each folder."""
    inputs = torch.load(batch)
    for folder in folders:
        model = AutoModelForImageTextToText.from_pretrained(backbone, dtype=torch.float32)
        assert not model.load_state_dict(load_file(folder / "connector.safetensors"), strict=False).unexpected_keys
        tuned = copy.deepcopy(PeftModel.from_pretrained(model, str(folder)).eval())  # out of the mapped file: aligned
        with torch.no_grad():
            torch.save(tuned(**inputs, use_cache=False).logits, folder / "logits.pt")
    assert not any(name.startswith("mllm_lit") for name in sys.modules)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), [Path(word) for word in sys.argv[3:]])
