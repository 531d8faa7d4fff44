"""Lightning's trainer, with a precision that is chosen for the machine."""

from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.precision.precision import _PRECISION_INPUT
from lightning.pytorch.accelerators import Accelerator, CPUAccelerator, CUDAAccelerator, MPSAccelerator
from lightning.pytorch.plugins import Precision

from mllm_lit.backbones.load import has_amx


class MLLMTrainer(L.Trainer):
    """Lightning's trainer, and what it computes in is said with a reason.

    Args:
        accelerator: As Lightning's.
        precision: As Lightning's; ``auto`` is bf16-mixed on a GPU with bf16 and on a CPU with AMX, else 32-true, and
            gives way to a precision among the plugins.
        **others: All other arguments of Lightning's trainer; its model summary is off unless it is asked for.
    """

    def __init__(
        self,
        *,
        accelerator: str | Accelerator = "auto",
        precision: _PRECISION_INPUT | Literal["auto"] | None = "auto",
        **others: Any,
    ) -> None:
        self.precision_reason = "as set"
        plugins = others.get("plugins")
        plugins = plugins if isinstance(plugins, (list, tuple)) else [plugins]
        if precision == "auto" and any(isinstance(one, Precision) for one in plugins):
            precision, self.precision_reason = None, "of the plugin"
        elif precision == "auto":
            precision, why = choose_precision(accelerator)
            self.precision_reason = f"auto: {why}"
        if others.get("enable_model_summary") is None:
            others["enable_model_summary"] = False  # the table of what trains says more
        super().__init__(accelerator=accelerator, precision=precision, **others)


def choose_precision(accelerator: str | Accelerator) -> tuple[Literal["bf16-mixed", "32-true"], str]:
    """What the device of an accelerator computes in, and why: bf16 only where the hardware multiplies it."""
    kind = device_of(accelerator)
    if kind == "cuda":
        name = torch.cuda.get_device_name()
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", f"{name} has bf16"
        return "32-true", f"{name} has no bf16"
    if kind == "cpu":
        return ("bf16-mixed", "this CPU has AMX tiles") if has_amx() else ("32-true", "this CPU has no AMX tiles")
    return "32-true", f"{kind} is no device on which bf16 is known to be faster"


def device_of(accelerator: str | Accelerator) -> str:
    """``cpu``, ``cuda``, ``mps`` or another accelerator's name, as Lightning will choose it."""
    kinds: dict[str, type[Accelerator]] = {"cuda": CUDAAccelerator, "mps": MPSAccelerator, "cpu": CPUAccelerator}
    if not isinstance(accelerator, str):
        return next((name for name, kind in kinds.items() if isinstance(accelerator, kind)), type(accelerator).__name__)
    if accelerator not in ("auto", "gpu"):
        return accelerator
    return next(name for name, kind in kinds.items() if kind.is_available())
