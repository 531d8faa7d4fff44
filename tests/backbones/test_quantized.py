"""4- and 8-bit weights by bitsandbytes itself, of the embedded model on a CPU; it is an optional package."""

from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from mllm_lit.adapters import Adapter, Full, LoRA
from mllm_lit.adapters.merge import merged
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.load import LoadedBackbone
from mllm_lit.backbones.quantize import QuantizationError
from mllm_lit.callbacks.summary import parameters
from mllm_lit.module import MLLMModule

bitsandbytes: Any = pytest.importorskip("bitsandbytes")
pytestmark = [pytest.mark.slow, pytest.mark.optional]

Bits = Literal["4bit", "8bit"]
BITS: tuple[Bits, ...] = ("4bit", "8bit")


def loaded(bits: Bits | None) -> LoadedBackbone:
    return Backbone(dtype="float32", quantization=bits).load()


def logits(net: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = net(input_ids=torch.arange(5, 45)[None]).logits
    return found


@pytest.mark.parametrize("bits", BITS)
def test_the_llms_layers_are_quantised_and_nearly_say_the_same(bits: Bits) -> None:
    plain, packed = loaded(None), loaded(bits)
    kind = {"4bit": bitsandbytes.nn.Linear4bit, "8bit": bitsandbytes.nn.Linear8bitLt}[bits]
    names = {name for name, module in packed.model.named_modules() if isinstance(module, kind)}
    blocks = plain.model.get_submodule(plain.layout.blocks).named_modules()
    linear = {f"{plain.layout.blocks}.{name}" for name, module in blocks if isinstance(module, torch.nn.Linear)}
    assert names == linear
    a, b = logits(plain.model.eval()).flatten(), logits(packed.model.eval()).float().flatten()
    # NF4 has 16 values for a weight: some per cent of error; int8 some per mille.
    assert torch.corrcoef(torch.stack([a, b]))[0, 1] > {"4bit": 0.98, "8bit": 0.998}[bits]


@pytest.mark.parametrize("bits", BITS)
def test_gradients_are_those_of_the_weights_that_they_stand_for(bits: Bits) -> None:
    """After an evaluation, too, in which bitsandbytes would pack 4-bit weights for good so that none passes them."""
    plain, packed = loaded(None), loaded(bits)
    for name, module in packed.model.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, bitsandbytes.nn.Params4bit):
            values = bitsandbytes.functional.dequantize_4bit(weight.data, weight.quant_state)
        elif isinstance(weight, bitsandbytes.nn.Int8Params):
            values = weight.data.float() * weight.SCB[:, None] / 127
        else:
            continue
        plain.model.get_submodule(name).weight.data.copy_(values)
    found = []
    ids = torch.arange(5, 45)[None]
    for base in (plain, packed):
        torch.manual_seed(0)
        net = LoRA(rank=4, dropout=0.0).attach(base)
        logits(net.eval())
        net.train()
        for name, parameter in net.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        net(input_ids=ids, labels=ids).loss.backward()
        found.append({name: p.grad for name, p in net.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    # bf16 has 8 bits, and int8 layers round their inputs to as many, in every block.
    for name, gradient in found[0].items():
        assert torch.cosine_similarity(gradient.flatten(), found[1][name].flatten(), 0) > 0.97, name


@pytest.mark.parametrize("bits", BITS)
def test_lora_on_them_learns_and_is_saved(tmp_path: Path, bits: Bits) -> None:
    base = loaded(bits)
    adapter = LoRA(rank=4, dropout=0.0)
    net = adapter.attach(base)
    ids = torch.arange(5, 45)[None]
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(5):
        loss = net(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.5
    adapter.save(net, tmp_path / "adapter")
    again = Adapter.load(loaded(bits), tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(net.eval()))


def test_packed_weights_are_counted_as_what_they_stand_for() -> None:
    counts = []
    for bits in (None, *BITS):
        module = MLLMModule(Backbone(dtype="float32", quantization=bits), LoRA(rank=4))
        module.configure_model()
        counts.append(parameters(module))
    assert counts[1:] == counts[:1] * 2


@pytest.mark.parametrize("bits", BITS)
def test_what_needs_the_weights_themselves_is_refused(bits: Bits) -> None:
    with pytest.raises(QuantizationError, match="packed integers"):
        Full().attach(loaded(bits))
    base = loaded(bits)
    net = LoRA(rank=4).attach(base)
    with pytest.raises(QuantizationError, match="packed integers"):
        merged(base, net)
