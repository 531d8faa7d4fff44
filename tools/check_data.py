"""What ``mllm-lit check-data`` does, from a checkout: python tools/check_data.py --help."""

import sys

from mllm_lit.commands.check_data import main
from mllm_lit.errors import plain_errors

if __name__ == "__main__":
    with plain_errors():
        sys.exit(main())
