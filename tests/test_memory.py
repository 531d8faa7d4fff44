"""What training holds in memory: no gradients between steps, no holes that nothing fits into."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from mllm_lit.adapters import Full
from mllm_lit.allocator import JOINED, TUNABLES, is_glibc
from tests.conftest import REPOSITORY
from tests.test_module import data, module, trainer


class Gradients(L.Callback):
    """Whether there are any, when a batch begins."""

    def __init__(self) -> None:
        self.there: list[bool] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.there.append(any(p.grad is not None for p in pl_module.parameters()))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_gradients_are_freed_with_the_step(tiny_folder: Path, tmp_path: Path, accumulate: int) -> None:
    seen = Gradients()
    fit = trainer(tmp_path, callbacks=[seen], accumulate_grad_batches=accumulate)
    fit.fit(module(tiny_folder, Full()), datamodule=data(tmp_path))
    assert seen.there == [bool(i % accumulate) for i in range(6)], "they would be held while activations are computed"


# A forward pass in small: of two tensors of a size, one is kept for the backward pass.
PASS = """
import sys
from mllm_lit.allocator import start_again_with_joined_memory
start_again_with_joined_memory()
import torch
def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))
torch.set_num_threads(1)
begin, top = resident(), 0
for step in range(4):
    x, kept = torch.ones(8, 40 + step % 3, 576), []
    for _ in range(120):
        x = (x * 1.5 + 1.0) * 0.5
        kept.append((x, x.sum(-1)))
    top = max(top, resident())
print((top - begin) / sum(part.nbytes for row in kept for part in row), *sys.argv[1:])
"""


def run(code: str, *words: str, **environment: str) -> list[str]:
    """What a process of its own prints."""
    env = {name: value for name, value in os.environ.items() if name != TUNABLES} | environment
    command = [sys.executable, "-c", code, *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=env, cwd=REPOSITORY).stdout.split()


@pytest.mark.skipif(not is_glibc(), reason="glibc's allocator")
def test_what_freed_tensors_leave_is_used_again() -> None:
    over, *words = run(PASS, "a word", "--another=1")
    assert words == ["a", "word", "--another=1"], "the process goes on as it was started"
    assert float(over) < 1.8, "2.0 with glibc 2.36 as it comes"


@pytest.mark.skipif(not is_glibc(), reason="glibc's allocator")
def test_the_users_own_tunables_are_left_alone() -> None:
    ask = "import os; from mllm_lit import allocator; allocator.start_again_with_joined_memory()"
    ask += f"; print(os.environ[{TUNABLES!r}])"
    assert run(ask) == [JOINED]
    assert run(ask, GLIBC_TUNABLES="glibc.malloc.check=0") == ["glibc.malloc.check=0"]


def test_a_process_that_runs_a_tool_beside_something_else_is_not_replaced() -> None:
    """As a notebook's ``%run`` does; the first word would be printed twice."""
    path = str(REPOSITORY / "tools" / "fit.py")
    ask = f"import runpy, sys; print('once', flush=True); sys.argv = ['', '--no_such=1']; runpy.run_path({path!r}, "
    env = {name: value for name, value in os.environ.items() if name != TUNABLES}
    command = [sys.executable, "-c", ask + "run_name='__main__')"]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY)
    assert (ended.returncode, ended.stdout.split().count("once")) == (1, 1), ended.stderr
