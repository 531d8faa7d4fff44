"""What a run reports at its end: the table, and ``summary.json`` in the run directory."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from mllm_lit.errors import write_whole
from mllm_lit.evaluation.sets import Result, Scores, in_words
from mllm_lit.metrics import forgetting, normalised, tradeoff

PACKAGES = ("mllm_lit", "torch", "lightning", "transformers", "peft")
PARTS = ("backbone", "adapter", "objective", "importance")
"""What a run was put together from; files of earlier versions have no objective."""


def summarise(
    *,
    experiment: str,
    seed: int,
    parts: dict[str, str | None],
    headlines: dict[str, str],
    others: dict[str, str],
    before: Scores,
    during: Sequence[dict[str, Any]],
    after: Scores,
    parameters: dict[str, int],
    cost: dict[str, float],
    precision: dict[str, str],
    kl_to_before: float | None = None,
    counts: Mapping[str, int] | None = None,
    lmms_eval: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Put a run's results into the form of ``summary.json``.

    Args:
        experiment: Name of the run.
        seed: The run's seed.
        parts: ``backbone``, ``adapter``, ``objective`` and ``importance``, by name.
        headlines: Set -> the score reported for it; the target comes first, the rest are sources.
        others: Likewise, of sets that are neither and enter no mean.
        before: Scores of the backbone, in points.
        during: ``step``, ``epoch`` and ``scores`` of each validation.
        after: Scores of the trained model.
        parameters: ``total`` and ``trainable``.
        cost: Time, tokens, memory and operations of the training.
        precision: What was computed in (``used``), and ``why``.
        kl_to_before: KL of the model before training to the one after, nats an answer token of the target's training
            rows, where the objective keeps what the first says.
        counts: Set -> how many samples were scored.
        lmms_eval: ``before``, ``during`` and ``after`` of the tasks of lmms-eval, where the run has scored some.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name, headline in (headlines | others).items():
        row: dict[str, Any] = {"metric": headline}
        row |= {"before": before[name][headline], "after": after[name][headline]}
        row |= {"nll_before": before[name]["nll"], "nll_after": after[name]["nll"]}
        rows[name] = row | ({"samples": counts[name]} if counts and name in counts else {})
    target, *sources = headlines
    for name in (*sources, *others):
        rows[name]["forgetting"] = forgetting(rows[name]["before"], rows[name]["after"])["points"]
    scored = [[rows[name][phase] for name in sources] for phase in ("before", "after")]
    trade: dict[str, float | None] | None = None
    if sources:
        trade = {**tradeoff(rows[target]["after"], scored[1]), "A_S_normalised": normalised(*scored)}
    return {
        "experiment": experiment,
        **parts,
        "seed": seed,
        "parameters": parameters,
        "target": {"name": target, **rows[target]},
        "sources": {name: rows[name] for name in sources},
        "others": {name: rows[name] for name in others},
        "tradeoff": trade,
        "kl_to_before": kl_to_before,
        "cost": cost,
        "precision": precision,
        "scores": {"before": before, "after": after},
        "during": list(during),
        **({} if lmms_eval is None else {"lmms_eval": lmms_eval}),
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
    write_whole(path, json.dumps(summary, indent=1, ensure_ascii=False) + "\n")
    return path


def lmms_eval_rows(summary: dict[str, Any]) -> list[tuple[str, str, float | None, float]]:
    """Task, name of a score, and its values before and after training, of what lmms-eval has scored."""
    told = summary.get("lmms_eval") or {}
    before = told.get("before") or {}
    return [
        (task, key, before.get(task, {}).get(key), value)
        for task, scores in (told.get("after") or {}).items()
        for key, value in scores.items()
    ]


def table(summary: dict[str, Any]) -> Table:
    """The run's results as a table for the terminal, 80 columns wide at most for short names."""
    parts = " · ".join(str(summary[key]) for key in PARTS if summary.get(key))
    title = f"{summary['experiment']}: {parts} · seed {summary['seed']}"
    out = Table(title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1), collapse_padding=True)
    others = summary.get("others", {})  # of sequences; earlier files have none
    for heading in ("target\nsources" + "\nothers" * bool(others), "score"):
        out.add_column(heading, no_wrap=True, vertical="bottom")
    counted = "samples" in summary["target"]  # earlier files do not say it
    if counted:
        out.add_column("n", justify="right", vertical="bottom")
    for heading in ("before", "after", "change", "forgotten", "NLL\nbefore", "NLL\nafter"):
        out.add_column(heading, justify="right", vertical="bottom")
    sets = {summary["target"]["name"]: summary["target"], **summary["sources"], **others}
    ends = {0, len(summary["sources"])}
    for i, (name, row) in enumerate(sets.items()):
        lost = f"{row['forgetting']:.1f}" if "forgetting" in row else ""
        cells = [f"{row['before']:.1f}", f"{row['after']:.1f}", f"{row['after'] - row['before']:+.1f}", lost]
        nll = [f"{row['nll_before']:.3f}", f"{row['nll_after']:.3f}"]
        number = [str(row["samples"])] if counted else []
        out.add_row(name, row["metric"], *number, *cells, *nll, end_section=i in ends)
    cost, count = summary["cost"], summary["parameters"]
    share = 100 * count["trainable"] / count["total"]
    lines = [
        f"trained {count['trainable']:,} of {count['total']:,} parameters ({share:.2f} %)",
        f"{cost['steps']} steps in {cost['train_seconds']:.0f} s, {cost['tokens_per_second']:.0f} tokens/s, "
        f"peak memory {cost['peak_memory_bytes'] / 2**30:.2f} GiB",
    ]
    if trade := summary["tradeoff"]:
        named = {"A^S (sources)": "A_S", "A^T (target)": "A_T", "H": "H", "O": "O"}
        shown = [f"{label} {trade[key]:.1f}" for label, key in named.items()]
        if trade["A_S_normalised"] is not None:
            shown.insert(1, f"normalised {trade['A_S_normalised']:.1f} %")
        lines.insert(0, " · ".join(shown))
    lines += [
        f"lmms-eval {task} {key}: {'–' if first is None else f'{first:.4g}'} → {last:.4g}"
        for task, key, first, last in lmms_eval_rows(summary)
    ]
    out.caption = "\n".join(lines)
    out.caption_justify = "left"
    return out


def scores_table(result: Result, headlines: Mapping[str, str]) -> Table:
    """All scores of an evaluation as a table for the terminal, of each set the one that counts first.

    Args:
        result: Of the evaluation.
        headlines: Set -> name of that score.
    """
    out = Table(title=in_words(result.phase), title_justify="left", box=box.SIMPLE, padding=(0, 1))
    for heading in ("set", "score"):
        out.add_column(heading, no_wrap=True)
    for heading in ("n", "points", "NLL"):
        out.add_column(heading, justify="right")
    for name, scores in result.scores.items():
        first = headlines[name]
        others = [key for key in scores if key not in (first, "nll")]
        counted = str(len(result.records[name]))
        out.add_row(name, first, counted, f"{scores[first]:.1f}", f"{scores['nll']:.3f}", end_section=not others)
        for key in others:
            out.add_row("", key, "", f"{scores[key]:.1f}", "", end_section=key == others[-1])
    return out


def card(summary: dict[str, Any], files: Sequence[str]) -> str:
    """A model card of what was trained, in the form of the Hugging Face hub.

    Args:
        summary: The content of ``summary.json``.
        files: Names of the files beside it.
    """
    base = str(summary["backbone"])
    on_hub = base.count("/") == 1 and not base.startswith((".", "/", "~")) and not Path(base).exists()
    library = "peft" if "adapter_config.json" in files else "mllm_lit"
    head = [f"base_model: {base}"] * on_hub + [f"library_name: {library}", "tags: [mllm_lit, image-text-to-text]"]
    sets = {summary["target"]["name"]: summary["target"], **summary["sources"], **summary.get("others", {})}
    roles = ["target", *["source"] * len(summary["sources"]), *["other"] * len(summary.get("others", {}))]
    rows = [
        f"| {name} | {role} | {row['metric']} | {row['before']:.1f} | {row['after']:.1f} "
        f"| {row['after'] - row['before']:+.1f} |"
        for role, (name, row) in zip(roles, sets.items(), strict=True)
    ]
    count, cost = summary["parameters"], summary["cost"]
    trade = {"A^S": "A_S", "A^T": "A_T", "H": "H", "O": "O"} if summary["tradeoff"] else {}
    means = ", ".join(f"{label} {summary['tradeoff'][key]:.1f}" for label, key in trade.items())
    facts = {
        "backbone": base,
        **{part: summary.get(part) or "none" for part in PARTS if part != "backbone"},
        "seed": summary["seed"],
        "trained": f"{count['trainable']:,} of {count['total']:,} parameters",
        "training": f"{cost['steps']} steps, {cost['tokens']:,} tokens, {cost['train_seconds']:.0f} s",
        "precision": summary["precision"]["used"],
        "versions": ", ".join(f"{name} {number}" for name, number in summary["versions"].items()),
        **({"commit": summary["commit"]} if summary["commit"] else {}),
    }
    return "\n".join(
        [
            "---",
            *head,
            "---",
            "",
            f"# {summary['experiment']}",
            "",
            f"{base}, fine-tuned on {summary['target']['name']}; what it has learned and what it has forgotten:",
            "",
            "| set | is | score | before | after | change |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            *([f"Means over target and sources: {means}.", ""] if means else []),
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in facts.items()),
            "",
            "To load it onto its backbone:",
            "",
            "```python",
            "from mllm_lit.inference.run import read_backbone",
            "from mllm_lit.adapters import Adapter",
            "",
            f'loaded = read_backbone("{"ITS_FILE.yaml" if " + " in base else base}").load()',
            'model = Adapter.load(loaded, "FOLDER").eval()',
            "```",
            "",
            f"Files: {', '.join(files)}.",
            "",
        ]
    )
