"""What ``mllm-lit ask`` does, from a checkout: python tools/ask.py --help."""

from mllm_lit.commands.ask import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
