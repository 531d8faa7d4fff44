"""Run a study, see how it stands, report it.

    python tools/study.py run configs/studies/peft/methods.yaml --jobs 2   # goes on where it was stopped
    python tools/study.py run STUDY.yaml --slurm                           # one array job for all cells that are ready
    python tools/study.py run STUDY.yaml --dry_run                         # what it consists of, as commands
    python tools/study.py status STUDY.yaml
    python tools/study.py report STUDY.yaml --latex

Every cell is one run of tools/fit.py, or a merge of one. It is known by its settings and data, so an edited one is run
anew and the rest is not. See docs/studies.md.
"""

import argparse
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from mllm_lit.errors import in_range, plain_errors
from mllm_lit.studies import Local, Plan, Slurm, Stopped, Store, Tools, collect, read_results, read_study, write_results
from mllm_lit.studies.check import check_plan
from mllm_lit.studies.plan import Cell
from mllm_lit.studies.study import Study

ROOT = Path(__file__).parent.parent


def main() -> None:
    """Parse, then run, tell or report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["run", "status", "report"])
    parser.add_argument("study", type=Path)
    parser.add_argument("--with", dest="overlays", type=Path, action="append", default=[], help="laid over the study")
    parser.add_argument("--runs", type=Path, default=Path("logs/studies"), help="folder of all cells' run directories")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks/results/studies", help="folder of NAME.json")
    parser.add_argument("--out", type=Path, help="folder of the report; default: RUNS/reports/NAME")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once on this machine")
    parser.add_argument("--slurm", action="store_true", help="submit the cells as jobs")
    parser.add_argument("--dry_run", action="store_true", help="print the cells and their commands")
    parser.add_argument("--anew", action="store_true", help="run cells whose results are kept, too")
    parser.add_argument("--latex", action="store_true", help="tables as LaTeX, too")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the runs may name")
    options = parser.parse_args()
    in_range("--jobs", options.jobs, 1)
    study = read_study(options.study, options.overlays)
    file = options.results / f"{study.file.name}.json"
    kept = None if options.anew else read_results(file)
    store = Store(options.runs.absolute(), {} if kept is None else kept.summaries())
    plan = plan_of(study, store)
    tools = Tools(ROOT / "tools", options.trust)
    if options.command == "run" and not options.dry_run:
        check_plan(plan)
        runner = Slurm(plan, store, tools) if options.slurm else Local(plan, store, tools, options.jobs)
        try:
            states = runner.run()
        except Stopped:
            sys.exit("Stopped; what was running has saved. The same command goes on.")
        tell(states, store)
        write_results(collect(plan, store, kept), file)
        sys.exit(0 if all(state == "done" for _, state in states) else 1)
    states = store.states(plan.cells())
    if options.command == "run":
        for cell, state in states:
            said = shlex.join(tools.command(cell, store)) if cell.key else "(its rate is chosen by cells above)"
            print(f"# {cell.key or '-' * 16} {state}: {cell.name}\n{said}")
    elif options.command == "report":
        from mllm_lit.reports import write_report
        from mllm_lit.studies.identity import contents

        results = collect(plan, store, kept)
        write_results(results, file)
        folder = options.out or options.runs / "reports" / study.file.name
        page = write_report(study, results, folder, options.latex, options.trust, contents()[0])
        print(f"Written: {page}")
    tell(states, store)


def plan_of(study: Study, store: Store) -> Plan:
    """The plan of a study, its cells' settings read."""
    from mllm_lit.studies.identity import facts

    numbers = count(1)
    with Console(stderr=True).status("reading settings") as shown:

        def told(words: Sequence[str]) -> dict[str, Any]:
            shown.update(f"reading settings {next(numbers)}")
            return facts(words)

        plan = Plan(study, told, store.summary)
        plan.cells()
    return plan


def tell(states: list[tuple[Cell, str]], store: Store) -> None:
    """How many cells are in which state, and those that want somebody to look."""
    for cell, state in states:
        if state in ("failed", "blocked", "running", "begun"):
            where = f"; see {store.file(cell, '.log')}" if state == "failed" else ""
            print(f"{cell.key or '':16} {state}: {cell.name}{where}")
    print(", ".join(f"{number} {state}" for state, number in Counter(state for _, state in states).items()))


if __name__ == "__main__":
    with plain_errors():
        main()
