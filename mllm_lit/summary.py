"""What a run reports at its end: the table, and ``summary.json`` in the run directory."""

import json
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.table import Table

from mllm_lit.metrics import forgetting, tradeoff

PACKAGES = ("mllm_lit", "torch", "lightning", "transformers", "peft")
Scores = dict[str, dict[str, float]]


def summarise(
    *,
    experiment: str,
    seed: int,
    parts: dict[str, str | None],
    headlines: dict[str, str],
    before: Scores,
    after: Scores,
    parameters: dict[str, int],
    cost: dict[str, float],
) -> dict[str, Any]:
    """Put a run's results into the form of ``summary.json``.

    Args:
        experiment: Name of the run.
        seed: The run's seed.
        parts: ``backbone``, ``adapter`` and ``importance``, by name.
        headlines: Set -> the score reported for it; the target comes first, the rest are sources.
        before: Scores of the backbone, in points.
        after: Scores of the trained model.
        parameters: ``total`` and ``trainable``.
        cost: Time, tokens, memory and operations of the training.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, headline in headlines.items():
        row: dict[str, Any] = {"metric": headline}
        row |= {"before": before[name][headline], "after": after[name][headline]}
        row |= {"nll_before": before[name]["nll"], "nll_after": after[name]["nll"]}
        rows[name] = row
    target, *sources = headlines
    for name in sources:
        rows[name]["forgetting"] = forgetting(rows[name]["before"], rows[name]["after"])["points"]
    return {
        "experiment": experiment,
        **parts,
        "seed": seed,
        "parameters": parameters,
        "target": {"name": target, **rows[target]},
        "sources": {name: rows[name] for name in sources},
        "tradeoff": tradeoff(rows[target]["after"], [rows[name]["after"] for name in sources]) if sources else None,
        "cost": cost,
        "scores": {"before": before, "after": after},
        "versions": {package: version(package) for package in PACKAGES},
        "commit": commit(),
    }


def commit() -> str | None:
    """The checked-out commit of the code that runs, with ``+`` if files differ from it; ``None`` if installed."""
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ("git", *arguments), cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def write(summary: dict[str, Any], folder: Path) -> Path:
    """Write ``summary.json`` and return its path."""
    path = folder / "summary.json"
    path.write_text(json.dumps(summary, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def table(summary: dict[str, Any]) -> Table:
    """The run's results as a table for the terminal."""
    parts = " · ".join(str(summary[key]) for key in ("backbone", "adapter", "importance") if summary[key])
    out = Table(title=f"{summary['experiment']}: {parts} · seed {summary['seed']}", title_justify="left")
    for heading in ("set", "score", "before", "after", "change", "forgotten", "NLL before", "NLL after"):
        out.add_column(heading, justify="left" if heading in ("set", "score") else "right")
    sets = {f"{summary['target']['name']} (target)": summary["target"], **summary["sources"]}
    for i, (name, row) in enumerate(sets.items()):
        lost = f"{row['forgetting']:.1f}" if "forgetting" in row else ""
        cells = [f"{row['before']:.1f}", f"{row['after']:.1f}", f"{row['after'] - row['before']:+.1f}", lost]
        nll = [f"{row['nll_before']:.3f}", f"{row['nll_after']:.3f}"]
        out.add_row(name, row["metric"], *cells, *nll, end_section=i in (0, len(sets) - 1))
    if summary["tradeoff"]:
        trade = summary["tradeoff"]
        out.add_row("A^S · A^T · H · O", "", "", " · ".join(f"{trade[key]:.1f}" for key in ("A_S", "A_T", "H", "O")))
    cost, count = summary["cost"], summary["parameters"]
    share = 100 * count["trainable"] / count["total"]
    out.caption = (
        f"trained {count['trainable']:,} of {count['total']:,} parameters ({share:.2f} %) in "
        f"{cost['train_seconds']:.0f} s, {cost['steps']} steps, {cost['tokens_per_second']:.0f} tokens/s, "
        f"peak memory {cost['peak_memory_bytes'] / 2**30:.2f} GiB"
    )
    out.caption_justify = "left"
    return out
