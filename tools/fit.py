"""Fine-tune a multimodal LLM and measure what it forgets: python tools/fit.py --config configs/scienceqa_lora.yaml."""

import sys

from mllm_lit.cli import USER_ERRORS, main

if __name__ == "__main__":
    try:
        main()
    except USER_ERRORS as error:
        # Their messages say what to change; where in the code they were raised does not help.
        sys.exit(f"{type(error).__name__}: {error}")
