"""Run a study, see how it stands, report it.

    mllm-lit study run peft/methods --jobs 2    # goes on where it was stopped
    mllm-lit study run STUDY.yaml --slurm       # one array job for all cells that are ready
    mllm-lit study run STUDY.yaml --dry_run     # what it consists of, as commands
    mllm-lit study status STUDY.yaml
    mllm-lit study report STUDY.yaml --latex

Every cell is one run of mllm-lit fit, or a merge of one. It is known by its settings and data, so an edited one is run
anew and the rest is not. See docs/studies.md.
"""

import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from rich.console import Console

from mllm_lit.commands import Arguments
from mllm_lit.errors import UsageError, in_range
from mllm_lit.names import find, names, near
from mllm_lit.studies import Local, Plan, Slurm, Stopped, Store, Tools, collect, read_results, read_study, write_results
from mllm_lit.studies.check import check_plan
from mllm_lit.studies.plan import Cell
from mllm_lit.studies.study import Study

ROOT = Path(__file__).parents[2]
CHECKOUT = (ROOT / "tools" / "fit.py").is_file()
"""Whether this is a checkout, not an installed package; there, results are kept among the benchmarks'."""


def main(args: Sequence[str] | None = None) -> None:
    """Parse, then run, tell or report."""
    parser = Arguments("study", __doc__)
    parser.add_argument("command", choices=["run", "status", "report"])
    parser.add_argument("study", help="a file, or the name of one in configs/studies, such as peft/location")
    parser.add_argument("--with", dest="overlays", action="append", default=[], help="laid over the study")
    parser.add_argument("--runs", type=Path, default=Path("logs/studies"), help="folder of all cells' run directories")
    folder = ROOT / "benchmarks/results/studies" if CHECKOUT else Path("logs/studies/results")
    parser.add_argument("--results", type=Path, default=folder, help="folder of NAME.json")
    parser.add_argument("--out", type=Path, help="folder of the report; default: RUNS/reports/NAME")
    parser.add_argument("--jobs", type=int, default=1, help="cells at once on this machine")
    parser.add_argument("--slurm", action="store_true", help="submit the cells as jobs")
    parser.add_argument("--dry_run", action="store_true", help="print the cells and their commands")
    parser.add_argument("--anew", action="store_true", help="run cells whose results are kept, too")
    parser.add_argument("--latex", action="store_true", help="tables as LaTeX, too")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the runs may name")
    options = parser.parse_args(args)
    in_range("--jobs", options.jobs, 1)
    study = read_study(study_file(options.study), [study_file(given) for given in options.overlays])
    file = options.results / f"{study.file.name}.json"
    kept = None if options.anew else read_results(file)
    # An overlay often leaves cells of the study as they are.
    plain = options.results / f"{read_study(study_file(options.study)).file.name}.json"
    found = [] if options.anew else [results for one in (plain, file) if (results := read_results(one)) is not None]
    summaries = {key: told for one in found for key, told in one.summaries().items()}
    codes = {cell.key: cell.code for one in found for cell in one.cells if cell.code}
    store = Store(options.runs.absolute(), summaries, codes)
    plan = plan_of(study, store)
    tools = Tools(ROOT / "tools" if CHECKOUT else None, options.trust)
    if options.command == "run" and not options.dry_run:
        check_plan(plan)
        runner = Slurm(plan, store, tools) if options.slurm else Local(plan, store, tools, options.jobs)
        try:
            states = runner.run()
        except Stopped:
            write_results(collect(plan, store, kept), file)
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
        from mllm_lit.studies.identity import code_digest

        results = collect(plan, store, kept)
        write_results(results, file)
        folder = options.out or options.runs / "reports" / study.file.name
        page = write_report(study, results, folder, options.latex, options.trust, code_digest())
        print(f"Written: {page}")
    tell(states, store)


def study_file(given: str) -> Path:
    """The file that was given, or that a name stands for.

    Raises:
        UsageError: There is none, but some with names like it.
    """
    file = Path(find("study", given))
    if not file.is_file() and (likely := near(given, names("study"))):
        raise UsageError(f"study {given}: there is no such file or name; did you mean {likely}?")
    return file


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
