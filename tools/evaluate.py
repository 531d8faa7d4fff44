"""What ``mllm-lit evaluate`` does, from a checkout: python tools/evaluate.py --help."""

from mllm_lit.commands.evaluate import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
