"""The model of lmms-eval --model mllm_lit --model_args run=logs/scienceqa_lora/version_0 --tasks mmstar."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from mllm_lit.commands.evaluate import DTYPES, opened
from mllm_lit.errors import SettingError
from mllm_lit.inference.lmms_model import Answers


class Model(Answers):
    """A run, or a backbone, with the options that ``mllm-lit evaluate`` has for it.

    Args:
        run: Directory of a finished run.
        backbone: In its place, a file or name in ``configs/backbones``, a hub id or a folder.
        trust: Module whose classes the run may name.
        start_from: Where the run that the run started from is now, if it was moved.
        dtype: float32, bfloat16 or float16; default: the backbone's.
        batch_size: Most questions that are answered at once.
        device: Not read: a GPU is used where there is one.
        max_batch_size: Not read.

    Raises:
        SettingError: Not one of run and backbone is given, or the dtype is another.
    """

    def __init__(
        self,
        run: str | None = None,
        backbone: str | None = None,
        trust: str | None = None,
        start_from: str | None = None,
        dtype: str | None = None,
        batch_size: int | str = 1,
        device: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        if (run is None) == (backbone is None):
            raise SettingError("--model_args: expected one of run=DIR and backbone=NAME.")
        if dtype not in (None, *DTYPES):
            raise SettingError(f"--model_args: dtype={dtype}; expected one of {', '.join(DTYPES)}.")
        folder = None if run is None else Path(run)
        options = Namespace(run=folder, backbone=backbone, trust=[trust] if trust else [], dtype=dtype)
        options.start_from = None if start_from is None else Path(start_from)
        given = opened(options, Path("logs"))
        super().__init__(given.tuned, int(batch_size), given.context)
