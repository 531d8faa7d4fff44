"""What ``mllm-lit export`` does, from a checkout: python tools/export.py --help."""

from mllm_lit.commands.export import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
