"""Within an accumulation window this package never asks a device for a value: a GPU would be waited for."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import mllm_lit
from mllm_lit.adapters.dropout import GeometricDropout
from mllm_lit.data.packed import PackedCollate
from tests.test_module import module
from tests.toy import Album

HERE = str(Path(mllm_lit.__file__).parent)
LIBRARIES = ("transformers", "peft")
aten = torch.ops.aten
WAITING = (aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default, aten.equal.default)


class Waits(TorchDispatchMode):
    """Where this package's own code uses an operation whose result the host needs; that of libraries aside."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            frame = sys._getframe()
            while frame.f_back is not None:
                frame = frame.f_back
                name = frame.f_code.co_filename
                if any(f"site-packages/{library}/" in name for library in LIBRARIES):
                    break
                if name.startswith(HERE):
                    self.found.append(f"{func} in {name}:{frame.f_lineno}")
                    break
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("packed", [False, True])
def test_a_micro_batch_waits_for_nothing(
    packed: bool, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GeometricDropout, "forward", nn.Dropout.forward)  # as it is where there is a device to wait for
    model = module(tiny_folder)
    model.configure_model()
    rows = Album().rows(tmp_path, "train")
    collate = PackedCollate(model.collate, share=True, pack=True) if packed else model.collate
    batch = collate(rows)
    model._trainer = type("OneProcess", (), {"world_size": 1, "accumulate_grad_batches": 4})()  # type: ignore[assignment]
    with Waits() as waits:
        loss = model.training_step(batch, 0)
        loss.backward()
    assert waits.found == []


def test_waiting_would_be_seen(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = module(tiny_folder)
    model.configure_model()
    batch = model.collate(Album().rows(tmp_path, "train")[:3])
    with Waits() as waits:
        type(batch.labelled).of(batch.labels, batch.labels, 3)  # as it is done where a batch is built
    assert waits.found
