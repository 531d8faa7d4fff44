"""Time and memory of one SPIDER update, against the straightforward implementation, on the same tensors in one process.

    python benchmarks/importance_step.py --blocks 2 20 32 --scales 1 4 4

The tensors are those of that many blocks of a 7B Llama (hidden 4096, MLP 11008), widths divided by the scale beside.
Peak memory is measured in a process of its own for each implementation, beside the weights and gradients.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mllm_lit.importance import Spider

Step = Callable[[], None]
SEED = 0


def parameters(blocks: int, scale: int, device: str) -> dict[str, nn.Parameter]:
    """Weights that came from a bf16 checkpoint, with a gradient each."""
    generator = torch.Generator(device).manual_seed(SEED)
    hidden, inner = 4096 // scale, 11008 // scale
    shapes = {f"attn.{key}": (hidden, hidden) for key in "qkvo"}
    shapes |= {"mlp.gate": (inner, hidden), "mlp.up": (inner, hidden), "mlp.down": (hidden, inner)}
    shapes |= {"norm1": (hidden,), "norm2": (hidden,)}
    result = {}
    for block in range(blocks):
        for key, shape in shapes.items():
            value = torch.randn(shape, generator=generator, device=device).mul_(0.02).bfloat16().float()
            parameter = nn.Parameter(value)
            parameter.grad = torch.randn(shape, generator=generator, device=device)
            result[f"layers.{block}.{key}"] = parameter
    return result


def five_dictionaries(named: dict[str, nn.Parameter]) -> Step:
    """The published procedure as it is usually written: θ0, I_w, G, I_g and M as full fp32 tensors."""

    def rank(x: Tensor) -> Tensor:
        size = x.abs()
        return torch.sigmoid((size - size.mean()) / size.std())

    theta0 = {name: p.detach().clone() for name, p in named.items()}
    weights = {name: rank(value) for name, value in theta0.items()}
    total = {name: torch.zeros_like(value) for name, value in theta0.items()}
    gradients: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}

    @torch.no_grad()
    def step() -> None:
        for name, p in named.items():
            total[name] += p.grad
            gradients[name] = rank(total[name])
            selected = weights[name] < gradients[name]
            raw = torch.where(selected, gradients[name] / (weights[name] + gradients[name]), 0.0)
            chosen = raw[raw != 0]
            masks[name] = torch.clamp(raw / chosen.mean(), max=1.0) if chosen.numel() else raw
            p.copy_((1 - masks[name]) * theta0[name] + masks[name] * p)

    return step


def spider(named: dict[str, nn.Parameter], **options: object) -> Step:
    """This package's."""
    rule = Spider(**options)  # type: ignore[arg-type]
    rule.attach(torch.optim.SGD(named.values(), lr=0.0), named.items())
    step: Step = torch.no_grad()(rule.after_step)
    return step


MAKERS: dict[str, Callable[[dict[str, nn.Parameter]], Step]] = {
    "five_dictionaries": five_dictionaries,
    "spider": spider,
    "spider_host": lambda named: spider(named, reference_on="host"),
    "spider_bf16": lambda named: spider(named, accumulator="bfloat16"),
    "spider_compiled": lambda named: spider(named, compile=True),
}


def peak_bytes(device: str) -> int:
    """Highest memory of this process so far."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_memory(name: str, blocks: int, scale: int, device: str) -> int:
    """Bytes that an implementation adds at its peak, over set-up and two updates."""
    named = parameters(blocks, scale, device)
    before = peak_bytes(device)
    step = MAKERS[name](named)
    step()
    step()
    return peak_bytes(device) - before


def seconds(step: Step, device: str) -> float:
    """Of one call."""
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def overhead(scale: int, tokens: int, repeats: int) -> dict[str, float]:
    """A whole training step of two blocks, with the rule and without, in turn (CPU, fp32)."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=4096 // scale,
        intermediate_size=11008 // scale,
        num_hidden_layers=2,
        num_attention_heads=32 // scale,
    )
    times: dict[str, list[float]] = {"plain": [], "spider": []}
    steps: dict[str, Step] = {}
    for key in times:
        model = LlamaForCausalLM(config).requires_grad_(False)
        model.model.layers.requires_grad_(True)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)
        if key == "spider":
            Spider().attach(optimizer, model.named_parameters())
        ids = torch.randint(0, 2048, (tokens // 256, 256))

        def step(model: nn.Module = model, optimizer: torch.optim.Optimizer = optimizer, ids: Tensor = ids) -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        steps[key] = step
        step()
    for _ in range(repeats):
        for key, step in steps.items():
            times[key].append(seconds(step, "cpu"))
    plain, rule = (statistics.median(times[key]) for key in ("plain", "spider"))
    return {"tokens": tokens, "plain_seconds": plain, "spider_seconds": rule, "overhead": rule / plain - 1}


def cases(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per number of blocks and implementation, each timed in turn on the same weights and gradients."""
    for blocks, scale in zip(args.blocks, args.scales, strict=True):
        named = parameters(blocks, scale, args.device)
        entries = sum(p.numel() for p in named.values())
        base = 0.0
        for name in args.variants:
            step = MAKERS[name](named)
            step()
            median = statistics.median(seconds(step, args.device) for _ in range(args.repeats))
            base = base or median
            del step
            command = [sys.executable, __file__, "--memory", name, "--blocks", str(blocks), "--scales", str(scale)]
            output = subprocess.run([*command, "--device", args.device], capture_output=True, text=True, check=True)
            yield {
                "blocks": blocks,
                "scale": scale,
                "parameters": entries,
                "implementation": name,
                "seconds": median,
                "speedup": base / median,
                "peak_bytes_per_parameter": int(output.stdout) / entries,
            }


def main() -> None:
    """Run and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 20, 32])
    parser.add_argument("--scales", type=int, nargs="+", default=[1, 4, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--memory", choices=list(MAKERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "importance_step.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:
        print(measure_memory(args.memory, args.blocks[0], args.scales[0], args.device))
        return
    rows = []
    for row in cases(args):
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {
        "commit": subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "threads": args.threads,
        "seed": SEED,
        "updates": rows,
        "whole_step": overhead(4, args.tokens, args.repeats) if args.device == "cpu" else None,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
