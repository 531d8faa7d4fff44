"""Writes docs/performance.md from the results that are in benchmarks/results: python benchmarks/performance.py"""

import json
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PAGE = Path(__file__).parent.parent / "docs" / "performance.md"
Lines = Iterator[str]
MAIN_JOB_SECONDS = 75
"""Aim for the whole first job, installation aside, on two quiet cores."""
FIRST_LINE_SECONDS = 3
"""Aim for the first line of progress of any run."""
MB = 1e6


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Lines:
    """A Markdown table."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(map(str, row)) + " |"
    yield ""


def said(*texts: str) -> Lines:
    """A paragraph."""
    yield from textwrap.wrap(" ".join(texts), 120, break_long_words=False, break_on_hyphens=False)
    yield ""


def with_aim(value: float, aim: float | None, most: bool = False) -> str:
    """A ratio beside what it is to reach; a miss is called one."""
    if aim is None:
        return f"{value:.2f}"
    sign, reached = ("≤", value <= aim) if most else ("≥", value >= aim)
    return f"{value:.2f} ({sign} {aim:g}{'' if reached else ', missed'})"


def measured_on(result: Mapping[str, Any]) -> str:
    """Machine, commit and versions."""
    load = result.get("load average", result.get("load_before"))
    before = (load["before"] if isinstance(load, Mapping) else load) if load else None
    versions = ", ".join(f"{name} {number}" for name, number in result.get("versions", {}).items())
    threads = f", threads: {result['threads']}" if "threads" in result else ""
    busy = f"; load average before: {before[0]:.1f}" if before else ""
    return f"{result.get('device', 'CPU')}{threads}; commit {result['commit'][:12]}; {versions}{busy}."


def throughput(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/throughput.py``."""
    yield from said(
        "Rows per CPU second and peak memory of the process, all trainers on the same weights, rows and batches",
        "(`benchmarks/throughput.py`). Ratios are to the Trainer, with the aim where there is one; a larger number is",
        "better in rows, a smaller one in memory. Labels a second are in the same ratio as rows.",
        "At 135 M a batch has 10, 5 and 2 rows at 16, 256 and 576 tokens a picture: at 576 no more than two questions",
        "can share theirs. Pictures are seen once, so none is cached.",
    )
    yield from said(measured_on(result))
    rows, failed = [], []
    for name, cell in result["cells"].items():
        aims = cell.get("aims", {})
        if not cell["same first loss"]:
            failed.append(f"- {name}: void, the first losses differ by more than 0.001.")
            continue
        for trainer, seen in cell["trainers"].items():
            if "error" in seen:
                failed.append(f"- {name}, {trainer}: {seen['error']}")
                continue
            ratio = cell["ratios"].get(trainer, {}).get("Trainer")
            held = aims if trainer == cell["held to the aims"] else {}
            cells = [name, trainer.replace("ours", "**this package**"), f"{seen['rows per second']:.2f}"]
            cells += [f"{seen['label tokens per second']:.1f}", f"{seen['peak_memory_bytes'] / MB:.0f}"]
            if ratio is None:
                cells += ["", ""]
            else:
                cells.append(with_aim(ratio["times as fast"], held.get("times as fast")))
                cells.append(with_aim(ratio["of its memory"], held.get("of its memory"), most=True))
            rows.append(cells)
    head = ["cell", "trainer", "rows / s", "labels / s", "peak MB", "times as fast as the Trainer", "of its memory"]
    yield from table(head, rows)
    if failed:
        yield from said("Not measured:")
        yield from failed
        yield ""


def main_job(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/main_job.py``."""
    cost, seconds = result["cost"], result["wall_seconds"]
    missed = "" if seconds <= MAIN_JOB_SECONDS else ", missed"
    yield from said(
        f"The README's first command took {seconds:.0f} s from its start to its end (`benchmarks/main_job.py`; aim on",
        f"two quiet cores: {MAIN_JOB_SECONDS} s{missed}). {cost['train_seconds']:.0f} s of them are training",
        f"({cost['steps']} steps, {cost['tokens']:,} tokens, precision {result['precision']['used']}), the rest is",
        "start-up and what is scored before, during and after it. The process held",
        f"{cost['peak_memory_bytes'] / MB:.0f} MB at its peak.",
    )
    yield from said(measured_on(result))


def startup(result: Mapping[str, Any]) -> Lines:
    """Whatever it holds, by name."""
    yield from said(f"Seconds from the command on. The aim is a first line of progress within {FIRST_LINE_SECONDS} s.")
    yield from said(measured_on(result))
    aside = {"commit", "versions", "device", "load average", "load_before", "load_after", "cores", "threads", "seed"}
    rows = [(name, f"{value:.2f}" if isinstance(value, float) else value) for name, value in leaves(result, aside)]
    yield from table(["what", "measured"], rows)


def leaves(tree: Any, aside: set[str], above: str = "") -> Iterator[tuple[str, Any]]:
    """Numbers and texts of a nested result, with the names that lead to them."""
    for name, value in tree.items():
        path = f"{above}, {name}" if above else str(name)
        if isinstance(value, Mapping):
            yield from leaves(value, aside, path)
        elif name not in aside and isinstance(value, int | float | str):
            yield path, value


def step_costs(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/step_costs.py``."""
    yield from said(
        "A training step of the embedded model, 16 rows, pictures cached, and what it takes without one of the savings",
        "(`benchmarks/step_costs.py`). Compiling is what the first two steps take longer, in seconds of the clock.",
    )
    yield from said(measured_on(result))
    rows = []
    for tuning in ("LoRA", "full tuning"):
        base = result[tuning]["as it is"]
        for name, seen in result[tuning].items():
            extra = seen["seconds of the first two steps"] - base["seconds of the first two steps"]
            compiling = f"{extra:.0f}" if name.startswith("compiled") and extra > 1 else ""
            cells = [f"{tuning}, {name}", f"{seen['ms a step']:.0f}", f"{seen['ms a step'] / base['ms a step']:.2f}"]
            rows.append([*cells, f"{seen['ms of AdamW']:.1f}", compiling])
    yield from table(["variant", "ms a step", "of the step as it is", "ms of AdamW", "compiling, s"], rows)


def training_memory(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/training_memory.py``."""
    yield from said(
        "Peak resident memory of training a random model of 136 M parameters with 8 rows, each run in a process of its",
        "own (`benchmarks/training_memory.py`).",
    )
    yield from said(measured_on(result))
    rows = []
    for name, seen in result["settings"].items():
        held = [
            f"{seen[way]['resident_bytes'] / 1e9:.2f}" for way in ("ours", "ours, allocator as it comes", "Trainer")
        ]
        rows.append([name, *held, with_aim(seen["ours over Trainer"], seen["aim"], most=True)])
    head = ["GB", "`tools/fit.py`", "allocator as it comes", "the Trainer", "ours over the Trainer"]
    yield from table(head, rows)


def evaluation(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/evaluation.py``."""
    yield from said(
        "Rows per CPU second of one prefill per picture (NLL and greedy answer), over batches of whole rows and over a",
        "row at a time with `generate` (`benchmarks/evaluation.py`).",
    )
    yield from said(measured_on(result))
    rows = []
    for name, cell in [*result["embedded model"].items(), *result["135 M"].items()]:
        model = "embedded" if name in result["embedded model"] else "135 M"
        aims = {over: aim["aim"] for over, aim in cell.get("aims", {}).items()}
        ratios = [with_aim(cell[f"over {over}"], aims.get(over)) for over in ("whole rows", "one by one")]
        rows.append([f"{model}, {name}", f"{cell['rows per second']['one prefill']:.1f}", *ratios])
    yield from table(["cell", "rows / s", "times as fast as whole rows", "as one by one"], rows)


def vision_cache(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/vision_cache.py``."""
    yield from said(
        "A training step with a frozen encoder's features kept, against one that computes them",
        "(`benchmarks/vision_cache.py`). The limit is the speed-up if the encoder took no time.",
    )
    yield from said(measured_on(result))
    rows = [
        [name, f"{seen['speedup']:.2f}", f"{seen['limit']:.2f}", f"{seen['filling over without']:.2f}"]
        for name, seen in result["models"].items()
    ]
    yield from table(["model", "speed-up", "limit", "time of the filling epoch over one without"], rows)


def importance_step(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/importance_step.py``."""
    yield from said(
        "One SPIDER update against the published procedure with its five dictionaries of fp32 tensors, on the same",
        "tensors (`benchmarks/importance_step.py`).",
    )
    if step := result.get("whole_step"):
        yield from said(
            f"A whole training step of two blocks takes {100 * step['overhead_min']:.1f} % longer with the rule."
        )
    yield from said(measured_on(result))
    rows = [
        [
            f"{row['blocks']} blocks, {row['parameters'] / 1e6:.0f} M",
            f"`{row['implementation']}`",
            f"{1e3 * row['seconds_min']:.0f}",
            f"{row['speedup_min']:.1f}",
            f"{row['peak_bytes_per_parameter']:.1f}",
        ]
        for row in result["updates"]
    ]
    yield from table(["tensors", "implementation", "ms", "times as fast", "bytes per parameter"], rows)


def gpu(result: Mapping[str, Any]) -> Lines:
    """``benchmarks/gpu.py``."""
    if result["small"]:
        yield from said(
            "**No figures of a GPU yet.** These are of a small model on a CPU, from `benchmarks/gpu.py --small`: they",
            "show that the script runs, and say nothing about speed.",
        )
    else:
        yield from said("A model of LLaVA-1.5-7B's shape with random weights in bf16 (`benchmarks/gpu.py`).")
    if peak := result.get("peak FLOPS"):
        yield from said(f"MFU assumes {peak / 1e12:.0f} TFLOPS, {result['peak of']}.")
    yield from said(measured_on(result))
    pairs = [
        (seen["ours"].get("first loss"), seen["Trainer"].get("first loss")) for seen in result["training"].values()
    ]
    apart = max((abs(mine - theirs) for mine, theirs in pairs if None not in (mine, theirs)), default=None)
    yield from said(
        "Ratios are of rows to the Trainer, which trains the same tensors on the same batches, without SPIDER.",
        f"Their first losses differ by {apart:.1g} at most." if apart is not None else "",
    )
    rows, failed = [], []
    for name, seen in result["training"].items():
        for trainer, one in seen.items():
            if "error" in one:
                failed.append(f"- {name}, {trainer}: {one['error']}")
                continue
            mfu = f"{100 * one['MFU']:.1f} %" if one.get("MFU") is not None else "–"
            cells = [name, trainer.replace("ours", "**this package**"), f"{one['tokens per second']:.0f}"]
            cells += [f"{one['rows per second']:.2f}", mfu, f"{one['peak_memory_bytes'] / MB:.0f}"]
            peer = seen.get("Trainer", {}).get("rows per second")
            over = f"{one['rows per second'] / peer:.2f}" if peer and trainer != "Trainer" else ""
            rows.append([*cells, over])
    yield from table(["training", "trainer", "tokens / s", "rows / s", "MFU", "peak MB", "times as fast"], rows)
    rows = []
    for name, one in result["evaluation"].items():
        if "error" in one:
            failed.append(f"- evaluation, {name}: {one['error']}")
        else:
            per = one["rows per second"]
            cells = [name, f"{per['one prefill']:.1f}", f"{per['whole rows']:.1f}", f"{per['one by one']:.1f}"]
            rows.append([*cells, f"{one['over whole rows']:.2f}", f"{one['over one by one']:.2f}"])
    head = ["evaluation", "one prefill, rows / s", "whole rows", "one by one", "over whole rows", "over one by one"]
    yield from table(head, rows)
    spider = result["spider"]
    if "error" in spider:
        failed.append(f"- SPIDER: {spider['error']}")
    else:
        share = spider.get("share of a step")
        of_a_step = "" if share is None else f" ({100 * share:.1f} % of a step)"
        yield from said(
            f"SPIDER's update of {spider['parameters'] / 1e6:.1f} M weights takes {1e3 * spider['seconds']:.1f}",
            f"ms{of_a_step}, that of five dictionaries {spider['times as fast']:.1f} times as long.",
        )
    if failed:
        yield from said("Not measured:")
        yield from failed
        yield ""


SECTIONS: dict[str, tuple[str, Callable[[Mapping[str, Any]], Lines]]] = {
    "throughput": ("Training beside other trainers", throughput),
    "main_job": ("The first job", main_job),
    "step_costs": ("What a step is spared", step_costs),
    "training_memory": ("Memory", training_memory),
    "startup": ("Start-up", startup),
    "evaluation": ("Evaluation", evaluation),
    "vision_cache": ("Vision cache", vision_cache),
    "importance_step": ("SPIDER's update", importance_step),
    "gpu": ("On a GPU", gpu),
}
"""By the name of a result's file; one that is missing has no section."""
HEAD = """# Performance

What was measured, on what, and the limit that it is held against. Written by `python benchmarks/performance.py` from
the files in `benchmarks/results`; nothing here is typed by hand, and misses are shown as misses. Times of CPU runs are
CPU seconds of one thread unless a table says otherwise: what else the machine does counts little.
"""


def page(results: Path) -> str:
    """The text of docs/performance.md."""
    lines = HEAD.splitlines()
    for name, (title, section) in SECTIONS.items():
        path = results / f"{name}.json"
        if name == "gpu" and not path.exists():
            path = results / "gpu_small.json"
        if path.exists():
            lines += ["", f"## {title}", "", *section(json.loads(path.read_text(encoding="utf-8")))]
            while not lines[-1]:
                lines.pop()
    return "\n".join(lines) + "\n"


def main() -> None:
    """Write it."""
    PAGE.write_text(page(RESULTS), encoding="utf-8")


if __name__ == "__main__":
    main()
