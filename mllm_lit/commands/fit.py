"""Fine-tune a multimodal LLM and measure what it forgets: mllm-lit fit --config scienceqa_lora."""

import sys
from collections.abc import Sequence

from mllm_lit.allocator import start_again_with_joined_memory


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line; what can be refused is refused before the libraries are imported."""
    start_again_with_joined_memory()
    from mllm_lit.begin import begin
    from mllm_lit.errors import plain_errors

    words = list(sys.argv[1:] if args is None else args)
    with plain_errors():
        begin(words)
        from mllm_lit.cli import main as run

        run(words)
