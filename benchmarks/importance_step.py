"""Time and memory of one SPIDER update, against the straightforward implementation, on the same tensors in one process.

    python benchmarks/importance_step.py --blocks 2 20 32 --scales 2 4 8 --threads 1

The tensors are those of that many blocks of a 7B Llama (hidden 4096, MLP 11008), widths divided by the scale beside.
Implementations take turns on the same weights and gradients, so that a load on the machine hits all of them. Peak
memory is measured in a process of its own for each, beside the weights and gradients. --report writes the table in
docs/importance.md from the JSON and measures nothing.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from machine import cpu_name
from torch import Tensor, nn

from mllm_lit.importance import Spider
from mllm_lit.summary import commit

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
    "spider_eager": lambda named: spider(named, compile=False),
}


def peak_bytes(device: str) -> int:
    """Highest memory of this process since it was last reset."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status)[1])  # type: ignore[index]


def reset_peak(device: str) -> None:
    """Start the peak again from what is held now (Linux on a CPU)."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def measure_memory(name: str, blocks: int, scale: int, device: str) -> int:
    """Bytes that an implementation adds at its peak, over set-up and two updates."""
    MAKERS[name](parameters(1, 32, device))()  # what is imported and allocated once in any process
    named = parameters(blocks, scale, device)
    reset_peak(device)
    before = peak_bytes(device)
    step = MAKERS[name](named)
    step()
    step()
    return peak_bytes(device) - before


def peak_of(name: str, blocks: int, scale: int, args: argparse.Namespace) -> int:
    """:func:`measure_memory` in a process of its own."""
    command = [sys.executable, __file__, "--memory", name, "--blocks", str(blocks), "--scales", str(scale)]
    command += ["--device", args.device, "--threads", str(args.threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


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
    result: dict[str, float] = {"tokens": tokens}
    for key, summary in (("min", min), ("median", statistics.median)):
        plain, rule = summary(times["plain"]), summary(times["spider"])
        result |= {f"plain_seconds_{key}": plain, f"spider_seconds_{key}": rule, f"overhead_{key}": rule / plain - 1}
    return result


def cases(args: argparse.Namespace) -> Iterator[dict[str, object]]:
    """One row per number of blocks and implementation, each timed in turn on the same weights and gradients."""
    for blocks, scale in zip(args.blocks, args.scales, strict=True):
        peaks = {name: peak_of(name, blocks, scale, args) for name in args.variants}  # before this process grows
        named = parameters(blocks, scale, args.device)
        entries = sum(p.numel() for p in named.values())
        steps = {name: MAKERS[name](named) for name in args.variants}
        times: dict[str, list[float]] = {name: [] for name in steps}
        for repeat in range(args.repeats + 1):
            for name, step in steps.items():
                taken = seconds(step, args.device)
                if repeat:  # the first one allocates
                    times[name].append(taken)
        first = times[args.variants[0]]
        for name, taken_by in times.items():
            yield {
                "blocks": blocks,
                "scale": scale,
                "parameters": entries,
                "implementation": name,
                "seconds_min": min(taken_by),
                "seconds_median": statistics.median(taken_by),
                "speedup_min": min(first) / min(taken_by),
                "speedup_median": statistics.median(first) / statistics.median(taken_by),
                "peak_bytes_per_parameter": peaks[name] / entries,
            }


def report(result: dict[str, Any], page: Path) -> None:
    """Put a table of the result between the marks in a Markdown page."""
    mark = "<!-- importance_step: {} -->"
    before, rest = page.read_text(encoding="utf-8").split(mark.format("begin"))
    lines = [
        "| blocks | parameters | implementation | ms per update, min / median | times faster | bytes per parameter |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for row in result["updates"]:
        time_ = f"{1e3 * row['seconds_min']:.0f} / {1e3 * row['seconds_median']:.0f}"
        cells = [f"{row['blocks']}, widths / {row['scale']}", f"{row['parameters'] / 1e6:.0f} M"]
        cells += [f"`{row['implementation']}`", time_, f"{row['speedup_min']:.1f} / {row['speedup_median']:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{row['peak_bytes_per_parameter']:.1f}"]) + " |")
    load = f"{result['load_before'][0]:.1f}"
    text = f"One update on {result['device']}, threads: {result['threads']}, load of the machine before: {load}."
    if step := result["whole_step"]:
        text += (
            f" A whole training step of two blocks on {step['tokens']} tokens takes "
            f"{100 * step['overhead_min']:.1f} % (min) or {100 * step['overhead_median']:.1f} % (median) longer with "
            "the rule than without."
        )
    text += " Measured by `benchmarks/importance_step.py`; `five_dictionaries` keeps θ0, I_w, G, I_g and M in fp32. "
    text += "Bytes are the peak beside weights and gradients, fixed costs of some megabytes included."
    body = "\n".join([mark.format("begin"), text, "", *lines, mark.format("end")])
    page.write_text(before + body + rest.split(mark.format("end"))[1], encoding="utf-8")


def main() -> None:
    """Run and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[2, 20, 32])
    parser.add_argument("--scales", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument(
        "--variants",
        nargs="+",
        choices=list(MAKERS),
        help="default: all, on a CPU without the eager one, which is `spider`",
    )
    parser.add_argument("--memory", choices=list(MAKERS))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "importance_step.json")
    parser.add_argument("--page", type=Path, default=Path(__file__).parent.parent / "docs" / "importance.md")
    parser.add_argument("--report", action="store_true", help="write the table of the JSON that is there")
    args = parser.parse_args()
    if args.report:
        report(json.loads(args.out.read_text(encoding="utf-8")), args.page)
        return
    torch.set_num_threads(args.threads)
    args.variants = args.variants or [n for n in MAKERS if args.device == "cuda" or n != "spider_eager"]
    load = os.getloadavg()
    if args.memory:
        print(measure_memory(args.memory, args.blocks[0], args.scales[0], args.device))
        return
    rows = []
    for row in cases(args):
        rows.append(row)
        print(json.dumps(row), flush=True)
    whole_step = overhead(4, args.tokens, args.repeats) if args.device == "cpu" else None
    print(json.dumps(whole_step), flush=True)
    result = {
        "commit": commit(),
        "versions": {"python": sys.version.split()[0], "torch": torch.__version__},
        "device": torch.cuda.get_device_name() if args.device == "cuda" else cpu_name(),
        "threads": args.threads,
        "seed": SEED,
        "load_before": load,
        "load_after": os.getloadavg(),
        "updates": rows,
        "whole_step": whole_step,
    }
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
