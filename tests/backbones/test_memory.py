"""Loading takes no more memory of its own than the weights need."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlavaForConditionalGeneration

from tests.tiny import tiny_config, tiny_processor

pytestmark = pytest.mark.slow

# Peak anonymous memory: pages that map the checkpoint's file belong to the file and are given up under pressure.
MEASURE = """
import sys, threading
from mllm_lit.backbones import Backbone, composed
from transformers import LlavaForConditionalGeneration, LlavaProcessor

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

start, peak, done = anonymous(), [0], threading.Event()
def watch():
    while not done.wait(0.002):
        peak[0] = max(peak[0], anonymous())
thread = threading.Thread(target=watch, daemon=True)
thread.start()
loaded = Backbone(sys.argv[1], dtype=sys.argv[2]).load()
done.set()
thread.join()
print(max(peak[0], anonymous()) - start)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's process table")
def test_loading_several_hundred_megabytes(tmp_path: Path) -> None:
    config = tiny_config()
    config.text_config.hidden_size, config.text_config.intermediate_size = 1024, 4096
    config.text_config.num_hidden_layers = 12
    with torch.device("meta"):
        shape = LlavaForConditionalGeneration(config).to(torch.bfloat16)
    model = shape.to_empty(device="cpu")
    for parameter in model.parameters():
        torch.nn.init.constant_(parameter, 0.01)
    model.save_pretrained(tmp_path, max_shard_size="100MB")
    tiny_processor().save_pretrained(tmp_path)
    size = sum(file.stat().st_size for file in tmp_path.glob("*.safetensors"))
    assert size > 300e6
    out = subprocess.run(
        [sys.executable, "-c", MEASURE, str(tmp_path), "bfloat16"], capture_output=True, text=True, check=True
    )
    assert int(out.stdout.split()[-1]) < 0.05 * size, "weights in the checkpoint's own dtype stay mapped"
