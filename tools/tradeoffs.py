"""Run the trade-off study of a grid file, or go on with it: python tools/tradeoffs.py --grid benchmarks/tradeoffs.yaml.

Writes one JSON per method to benchmarks/results/tradeoffs/GRID/, and from all that are there the table and the plot of
docs/tradeoffs.md (--report writes only those). Finished cells are skipped, so it may be stopped at any time;
those whose settings or data were edited since are run anew, and the old ones kept aside.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mllm_lit.cells import facts
from mllm_lit.errors import plain_errors
from mllm_lit.tradeoffs import GridError, Study, read_grid, write_report

ROOT = Path(__file__).parent.parent


def run(trust: Sequence[str], tool: str, words: Sequence[str]) -> None:
    """Start a tool in a process of its own."""
    words = [*words, *(f"--trust={module}" for module in trust if tool == "merge")]
    print(f"--- {tool} {' '.join(words)}", flush=True)
    if code := subprocess.run([sys.executable, str(ROOT / "tools" / f"{tool}.py"), *words], cwd=ROOT).returncode:
        raise GridError(f"tools/{tool}.py ended with status {code}; what it says stands above. Nothing else is lost.")


def main() -> None:
    """Parse, run, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--grid", type=Path, default=ROOT / "benchmarks" / "tradeoffs.yaml")
    parser.add_argument("--runs", type=Path, default=ROOT / "logs" / "tradeoffs", help="folder of the run directories")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / "tradeoffs")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "tradeoffs.md")
    parser.add_argument("--only", nargs="+", help="methods to run; default: all of the grid")
    parser.add_argument("--report", action="store_true", help="run nothing")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the runs may name")
    options = parser.parse_args()
    grid = read_grid(options.grid)
    if unknown := set(options.only or ()) - grid.methods.keys():
        raise GridError(f"The grid has no method {sorted(unknown)}; it has {list(grid.methods)}.")
    folder = options.results / grid.name
    folder.mkdir(parents=True, exist_ok=True)
    study = Study(grid, options.runs, partial(run, options.trust), facts)
    for name, method in grid.methods.items():
        if not options.report and name in (options.only or grid.methods):
            text = json.dumps(study.method(method), indent=1) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
    write_report(grid, folder, options.page)


if __name__ == "__main__":
    with plain_errors():
        main()
