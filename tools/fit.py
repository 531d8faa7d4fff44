"""Fine-tune a multimodal LLM and measure what it forgets: python tools/fit.py --config configs/scienceqa_lora.yaml."""

import sys

from mllm_lit.allocator import start_again_with_joined_memory

if __name__ == "__main__":
    start_again_with_joined_memory()
    from mllm_lit.begin import begin
    from mllm_lit.errors import plain_errors

    with plain_errors():
        begin(sys.argv[1:])
        from mllm_lit.cli import main

        main()
