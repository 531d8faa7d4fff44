"""Merge a finished run's weights with those before training, and score what comes out as the run was scored.

    mllm-lit merge --method wise_ft logs/scienceqa_spider/version_0         # a sweep over alpha
    mllm-lit merge --method dare --options '{drop: 0.8}' RUN --out MERGED   # also writes a model folder
    mllm-lit merge --method adapter RUN --out MERGED                        # the adapter merged, nothing else

Writes RUN/merges/METHOD/merge.json and the predictions beside it. Options that are not listed below override the run's
own settings, such as ``--trainer.devices 8`` or ``--data.max_eval_samples 200``.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from mllm_lit.cli import quiet
from mllm_lit.commands import Arguments
from mllm_lit.errors import in_range, write_whole
from mllm_lit.merging import MERGES
from mllm_lit.merging.options import check_options


def main(args: Sequence[str] | None = None) -> None:
    """Parse, merge, write."""
    parser = Arguments("merge", __doc__)
    parser.add_argument("run", type=Path, help="run directory of tools/fit.py")
    parser.add_argument("--method", required=True, choices=["adapter", *MERGES])
    parser.add_argument("--options", default="{}", help="the merge's arguments, as YAML")
    parser.add_argument(
        "--rows", type=int, default=128, help="training samples for model_tailor, and for grafting with steps"
    )
    parser.add_argument("--out", type=Path, help="write the merged weights there, as a Hugging Face folder")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the run may name")
    options, rest = parser.parse_known_args(args)
    from mllm_lit.merging.run import FinishedRun

    quiet()
    arguments = check_options(options.method, options.options)
    in_range("--rows", options.rows, 1)
    folder = options.run / "merges" / options.method
    run = FinishedRun(options.run, folder, rest, options.trust)
    if options.method == "adapter":
        result = run.check_adapter(options.out)
    else:
        result = run.merge(options.method, arguments, options.rows, options.out)
    write_whole(folder / "merge.json", json.dumps(result, indent=1) + "\n")
    print(f"Written: {folder / 'merge.json'}")
