"""Write a model that plain transformers loads: mllm-lit export --run logs/X/version_0 --out FOLDER.

The run's adapter is merged into the weights of its backbone. With --backbone in place of --run, that backbone is
written as it is: weights in their authors' own format, or parts of your choice, become a Hugging Face folder.
It says what vLLM and llama.cpp make of the folder, and of the run's adapter without its backbone.
"""

from collections.abc import Sequence
from pathlib import Path

from mllm_lit.commands import Arguments
from mllm_lit.inference.export import export
from mllm_lit.inference.run import load_tuned
from mllm_lit.inference.serving import adapter_faults, export_faults, report


def main(args: Sequence[str] | None = None) -> None:
    """Load, merge, write."""
    parser = Arguments("export", __doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--run", type=Path, help="directory of a finished run")
    which.add_argument("--backbone", help="a file or name in configs/backbones, hub id or folder")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; must be empty or new")
    parser.add_argument("--trust", action="append", default=[], help="module whose classes the run may name")
    parser.add_argument("--start_from", type=Path, help="where the run that --run started from is, if it was moved")
    parser.add_argument("--dtype", help="float32, bfloat16 or float16; default: the backbone's")
    options = parser.parse_args(args)
    tuned = load_tuned(options.backbone, options.run, options.trust, options.start_from, dtype=options.dtype)
    config = tuned.loaded.model.config
    change, imports = export(tuned, options.out)
    print(f"{options.out}: merged; a logit changed by at most {change:.2g}.")
    if imports:
        print(f"Before transformers can load it: import {', '.join(imports)}")
    print(report(options.out, export_faults(options.out)))
    if options.run is not None:
        print(report(options.run / "adapter", adapter_faults(options.run / "adapter", config)))
