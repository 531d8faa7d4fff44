"""Report of finished runs: mllm-lit report logs/scienceqa_lora/version_0 [another run ...].

Writes report.html (one file, opens without a network), tables.md and a CSV file for each table. Several runs of one
target are compared with the first. See docs/reports.md.
"""

from collections.abc import Sequence
from pathlib import Path

from mllm_lit.commands import Arguments
from mllm_lit.reports import write_runs


def main(args: Sequence[str] | None = None) -> None:
    """Parse, read, write."""
    parser = Arguments("report", __doc__)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="directory of a finished run")
    parser.add_argument("--out", type=Path, help="folder of the report; default: report in the first run's directory")
    parser.add_argument("--latex", action="store_true", help="tables as LaTeX, too")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the runs may name")
    options = parser.parse_args(args)
    print(f"Written: {write_runs(options.runs, options.out, options.latex, options.trust)}")
