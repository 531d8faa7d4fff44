"""Of runs that start at once, one computes what both keep; the moments are chosen: while the second waits."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.module import MLLMModule
from tests.checkpoints.process import Run, work, write_config
from tests.checkpoints.test_kill import FAMILIES

pytestmark = pytest.mark.slow
WAITS = "Another run computes"


def once_awaited(log: Path, then: Callable[[], None]) -> None:
    """Have the next evaluation wait for another run's message, and then do something."""
    evaluate = MLLMModule.evaluate

    def late(self: MLLMModule, *args: Any, **kwargs: Any) -> Any:
        MLLMModule.evaluate = evaluate  # type: ignore[method-assign]
        limit = time.monotonic() + 120
        while WAITS not in log.read_text() and time.monotonic() < limit:
            time.sleep(0.01)
        then()
        return evaluate(self, *args, **kwargs)

    MLLMModule.evaluate = late  # type: ignore[method-assign]


def awaited(arguments: Sequence[str], log: Path) -> None:
    once_awaited(log, lambda: None)
    work(arguments, log)


def killed(arguments: Sequence[str], log: Path) -> None:
    once_awaited(log, lambda: os.kill(os.getpid(), signal.SIGKILL))
    work(arguments, log)


@pytest.mark.parametrize("first", [awaited, killed])
def test_the_second_waits_for_the_first(first: Any, tiny_folder: Path, tmp_path: Path) -> None:
    objective = {"class_path": "mllm_lit.objectives.KLToBase", "init_args": {"top_k": 5}}
    config = write_config(tmp_path, tiny_folder, FAMILIES["full"], objective=objective)
    kept = tmp_path / "kept"
    words = ("--keep_before", str(kept), "--trainer.max_steps", "2", "--version")
    runs = [Run(config, *words, "one", target=first)]
    wait_for_scoring(kept)
    runs.append(Run(config, *words, "two"))
    ended, log = [run.end() for run in runs], runs[0].log.read_text()
    assert ended == [-signal.SIGKILL if first is killed else 0, 0], log
    assert log.count(WAITS) == 1
    # The base's words are kept ahead of the scores, so the killed run has left them.
    assert log.count("What the model says before training: kept in") == 1
    assert log.count("Scores before training: those kept in") == (0 if first is killed else 1)
    assert sum((one / "scores.json").is_file() for one in kept.iterdir()) == 1


def wait_for_scoring(kept: Path) -> None:
    """Until the first run holds the scores."""
    limit = time.monotonic() + 120
    while all(file.name.startswith("before_training") for file in kept.glob("*.lock")):
        assert time.monotonic() < limit
        time.sleep(0.01)
