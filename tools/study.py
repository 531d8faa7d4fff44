"""What ``mllm-lit study`` does, from a checkout: python tools/study.py --help."""

from mllm_lit.commands.study import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
