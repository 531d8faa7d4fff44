"""Ten thousand random faults in miniature releases: how many are harmless, how many named, and which are neither.

    python -m benchmarks.fuzz_readers --out benchmarks/results/fuzz_readers.json

Run from the root of a checkout: the miniatures and the faults are those of ``tests/tasks/``.
"""

import argparse
import platform
import tempfile
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from benchmarks.report import write_report
from mllm_lit.summary import commit
from tests.tasks.faults import fuzz


def main() -> None:
    """Try them and write the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    import datasets

    datasets.disable_progress_bars()
    kinds: Counter[str] = Counter()
    by_reader: dict[str, Counter[str]] = {}
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for name, outcome in fuzz(options.seed, options.faults, Path(folder), tqdm):
            kinds[outcome.kind] += 1
            by_reader.setdefault(name, Counter())[outcome.kind] += 1
            if outcome.kind not in ("harmless", "named"):
                wrong.append([name, outcome.kind, outcome.fault, outcome.told[:300]])
    report = {
        "faults": options.faults, "seed": options.seed, "outcomes": kinds, "by reader": by_reader, "wrong": wrong,
        "commit": commit(), "device": platform.machine(),
        "versions": {name: version(name) for name in ("msgspec", "datasets", "pyarrow")},
    }  # fmt: skip
    write_report(report, options.out)


if __name__ == "__main__":
    main()
