"""What ``mllm-lit report`` does, from a checkout: python tools/report.py --help."""

from mllm_lit.commands.report import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        main()
