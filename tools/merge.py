"""What ``mllm-lit merge`` does, from a checkout: python tools/merge.py --help."""

from mllm_lit.commands.merge import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
