"""Check every sample and decode every image of some data: mllm-lit check-data --config configs/X.yaml.

``mllm-lit check-data PATH [--show 3]`` first says what one's own data are: PATH is a file, a folder or a hub id.

Takes what mllm-lit fit takes, and ``--faults FILE`` for the list as JSON. Exits with 1 if there is a fault.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from mllm_lit.cli import build
from mllm_lit.commands import Arguments
from mllm_lit.data.preflight import check, read_all
from mllm_lit.data.show import shown
from mllm_lit.errors import in_range
from mllm_lit.look import look, own_words


def main(args: Sequence[str] | None = None) -> int:
    """Parse, read, check, report."""
    parser = Arguments("check-data", __doc__)
    parser.add_argument("--faults", type=Path, help="write the faults to this file, as JSON")
    parser.add_argument("--workers", type=int, help="threads that decode; default: one per core")
    parser.add_argument("--show", type=int, default=0, metavar="N", help="show so many samples as the model sees them")
    options, rest = parser.parse_known_args(args)
    in_range("--workers", options.workers, 1)
    in_range("--show", options.show, 0)
    if options.faults is not None:
        options.faults.open("a").close()  # refused now, not after all was read
    own = bool(rest) and not rest[0].startswith("-")
    built = build(None, own_words(*rest) if own else rest)
    lines, readers = look(built.data.task, built.data.root) if own else ((), built.data.readers())
    sys.stdout.writelines(f"{line}\n" for line in lines)
    datasets, faults = read_all(readers)
    faults += check(datasets, options.workers)
    sys.stdout.writelines(f"{fault}\n" for fault in faults)
    if options.faults is not None:
        options.faults.write_text(json.dumps([asdict(fault) for fault in faults], indent=1) + "\n", encoding="utf-8")
    rows = ", ".join(f"{name} {len(samples):,}" for name, samples in datasets.items())
    sys.stdout.write(f"{len(faults)} faults in {sum(map(len, datasets.values())):,} rows: {rows or 'none was read'}\n")
    if options.show and faults:
        sys.stdout.write("no sample is shown while there are faults\n")
    elif options.show:
        sys.stdout.writelines(shown(next(iter(datasets.values())), options.show, built.module.backbone))
    return int(bool(faults))
