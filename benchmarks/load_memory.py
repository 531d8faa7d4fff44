"""How much host memory loading a checkpoint takes, beside the checkpoint's size.

    python benchmarks/load_memory.py --out benchmarks/results/load_memory.json

A random LLaVA of several hundred MB is written in shards and loaded in a process of its own, by each kind of backbone:
a Hugging Face folder, LLaVA's own format in pickles and in safetensors, and parts. Peak resident memory is Linux's
figure (``VmHWM``), less what the process held before; it counts pages that only map the file, too. Peak anonymous
memory is what cannot be given back under pressure. Weights stay in the
checkpoint's dtype (bfloat16), or are converted (float32).
"""

import argparse
import json
import platform
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from report import write_report
from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from mllm_lit.summary import commit

LOAD = """
import json, os, sys, threading
os.environ.setdefault("PL_GLOBAL_SEED", "42")  # A new connector is drawn with it.
import torch
from mllm_lit.backbones import Backbone, ComposedBackbone, OriginalBackbone
from mllm_lit.backbones import composed
import transformers
from transformers import CLIPVisionModel, LlamaForCausalLM, LlavaForConditionalGeneration, LlavaProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

kind, dtype, *paths = sys.argv[1:]
make = {"hugging_face": Backbone, "original": OriginalBackbone, "parts": ComposedBackbone}[kind]
backbone = make(*paths, dtype=dtype)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # The peak so far is forgotten; ru_maxrss would be that of the parent.
before, start = status("VmRSS"), status("RssAnon")
peak, done = [0], threading.Event()
def watch():
    while not done.wait(0.001):
        peak[0] = max(peak[0], status("RssAnon"))
thread = threading.Thread(target=watch, daemon=True)
thread.start()
loaded = backbone.load()
done.set()
thread.join()
after = status("VmHWM")
held = sum(p.numel() * p.element_size() for p in loaded.model.parameters())
print(json.dumps({"resident": after - before, "anonymous": max(peak[0], status("RssAnon")) - start, "weights": held}))
"""
SIDE = {"height": 32, "width": 32}


def tokenizer() -> PreTrainedTokenizerFast:
    """Of 512 entries that mean nothing."""
    words = ["<pad>", "<unk>", "<s>", "</s>", "<image>", *(f"w{i}" for i in range(507))]
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def filled(model: Any) -> Any:
    """A model built on the meta device, with random weights in bf16."""
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.02)
    return model


def write(folder: Path, width: int, layers: int) -> dict[str, list[Path]]:
    """The checkpoint in every format: kind -> the paths that its backbone takes."""
    vision = CLIPVisionConfig(
        hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=16
    )
    text = LlamaConfig(
        hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers, num_attention_heads=8, vocab_size=512
    )
    torch.manual_seed(0)
    with torch.device("meta"):
        whole: Any = LlavaForConditionalGeneration(
            LlavaConfig(vision_config=vision, text_config=text, image_token_index=4)
        )
        tower: Any = CLIPVisionModel(vision)
        llm: Any = LlamaForCausalLM(text)
    images, words = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE), tokenizer()
    filled(whole).save_pretrained(folder / "hf", max_shard_size="100MB")
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    processor = LlavaProcessor(
        images, words, patch_size=16, vision_feature_select_strategy="default", chat_template=template
    )
    processor.save_pretrained(folder / "hf")
    filled(tower).save_pretrained(folder / "vision")
    images.save_pretrained(folder / "vision")
    llm = filled(llm)
    llm.save_pretrained(folder / "llm", max_shard_size="100MB")
    words.save_pretrained(folder / "llm")
    # LLaVA's own format: the LLM with the connector among its tensors, in pickles as published.
    original = folder / "original"
    original.mkdir()
    tensors = dict(llm.state_dict())
    for i, size in ((0, (width, 64)), (2, (width, width))):
        tensors[f"model.mm_projector.{i}.weight"] = torch.randn(size, dtype=torch.bfloat16)
        tensors[f"model.mm_projector.{i}.bias"] = torch.zeros(width, dtype=torch.bfloat16)
    names = sorted(tensors)
    for i in range(4):
        shard = {name: tensors[name] for name in names[i::4]}
        torch.save(shard, original / f"pytorch_model-0000{i + 1}-of-00004.bin")
    extra = {"model_type": "llava", "mm_projector_type": "mlp2x_gelu", "mm_vision_select_layer": -2}
    (original / "config.json").write_text(
        json.dumps({**text.to_dict(), **extra, "mm_vision_tower": str(folder / "vision")})
    )
    words.save_pretrained(original)
    safe = folder / "original_safe"
    safe.mkdir()
    for file in original.iterdir():
        if file.suffix == ".bin":
            save_file(torch.load(file, weights_only=True), safe / f"{file.stem}.safetensors")
        else:
            (safe / file.name).write_bytes(file.read_bytes())
    return {
        "hugging_face": [folder / "hf"],
        "original": [original],
        "original, safetensors": [safe],
        "parts": [folder / "vision", folder / "llm"],
    }


def size_of(paths: list[Path]) -> int:
    """Bytes of the weight files."""
    return sum(f.stat().st_size for path in paths for f in path.iterdir() if f.suffix in (".bin", ".safetensors"))


def main() -> None:
    """Write the checkpoints, load each, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    report: dict[str, Any] = {"checkpoints": {}}
    with tempfile.TemporaryDirectory() as folder:
        for kind, paths in write(Path(folder), options.width, options.layers).items():
            size = size_of(paths)
            for dtype in ("bfloat16", "float32"):
                command = [sys.executable, "-c", LOAD, kind.partition(",")[0], dtype, *map(str, paths)]
                out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=120).stdout
                found = json.loads(out.splitlines()[-1])
                report["checkpoints"][f"{kind}, {dtype}"] = {
                    "checkpoint_bytes": size,
                    "weights_bytes": found["weights"],
                    "peak_resident_bytes": found["resident"],
                    "peak_anonymous_bytes": found["anonymous"],
                    "resident over weights": found["resident"] / found["weights"],
                    "anonymous over weights": found["anonymous"] / found["weights"],
                }
    report |= {
        "commit": commit(),
        "device": platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "safetensors")},
    }
    write_report(report, options.out)


if __name__ == "__main__":
    main()
