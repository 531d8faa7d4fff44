"""Wall seconds of the README's first command, and its ``summary.json``.

    python benchmarks/main_job.py --out benchmarks/results/main_job.json

The command is read from the README, its installation left out. Wall time is a user's: from the start of the command to
its end, with start-up and all evaluations, files in the system's cache. Of the JSON, ``wall_seconds`` is that time; the
rest is the run's ``summary.json`` with the machine and its load average.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import made_with
from report import write_report

REPOSITORY = Path(__file__).parents[1]


def command() -> list[str]:
    """Words of the README's call of ``tools/fit.py``, for this interpreter."""
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = re.search(r"<!-- ci: run -->\n```bash\n.*?python (tools/fit\.py [^\n&]*)", readme, flags=re.S)
    if shown is None:
        raise ValueError("README.md has no command `python tools/fit.py …` under `<!-- ci: run -->`")
    return [sys.executable, *shlex.split(shown[1])]


def main() -> None:
    """Run the command once and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    machine = made_with()
    with tempfile.TemporaryDirectory() as place:
        begin = time.perf_counter()
        subprocess.run([*command(), "--output", place], cwd=REPOSITORY, check=True)
        wall = time.perf_counter() - begin
        (path,) = Path(place).glob("*/version_0/summary.json")
        summary = json.loads(path.read_text(encoding="utf-8"))
    write_report({"wall_seconds": wall, **machine, **summary}, options.out)


if __name__ == "__main__":
    main()
