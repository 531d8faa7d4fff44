"""Where the figures of a benchmark go."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_report(report: Mapping[str, Any], file: Path | None) -> None:
    """Print it as JSON, and write it to a file where one is given."""
    text = json.dumps(report, indent=1, ensure_ascii=False)
    sys.stdout.write(f"{text}\n")
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n", encoding="utf-8")
