"""A run that is killed again and again ends with the weights of one that is not, bit for bit."""

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_lit.callbacks import TrainableCheckpoint
from tests.checkpoints.process import Run, weights, work, write_config


def adapter(name: str, **arguments: Any) -> dict[str, Any]:
    rates = {"lr": 1e-2, "connector_lr": 1e-3}
    return {"class_path": f"mllm_lit.adapters.{name}", "init_args": {**rates, **arguments}}


FAMILIES = {
    "lora": adapter("LoRA", rank=4, alpha=8, dropout=0.1),
    "ia3": adapter("IA3"),
    "prefix": adapter("Prefix", tokens=3),
    "prompt": adapter("Prompt", tokens=3),
    "bottleneck": adapter("Bottleneck", size=8, dropout=0.1),
    "full": adapter("Full"),
}
LAST = ("--ckpt_path", "last")
pytestmark = pytest.mark.slow


def uninterrupted(folder: Path, backbone: Path, family: str) -> dict[str, torch.Tensor]:
    folder.mkdir()
    run = Run(write_config(folder, backbone, FAMILIES[family]))
    assert run.end() == 0, run.log.read_text()
    return weights(folder)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("family", FAMILIES)
def test_killed_at_random_steps(family: str, tiny_folder: Path, tmp_path: Path) -> None:
    whole = uninterrupted(tmp_path / "whole", tiny_folder, family)
    folder = tmp_path / "killed"
    folder.mkdir()
    config = write_config(folder, tiny_folder, FAMILIES[family])
    chance = random.Random(family)
    killed_at = []
    for step in (chance.randrange(1, 6), chance.randrange(6, 12)):
        run = Run(config, *LAST)
        run.wait_for(step)
        time.sleep(chance.random() * 0.05)
        run.process.kill()
        assert run.end() == -signal.SIGKILL, run.log.read_text()
        killed_at.append(run.step())
    run = Run(config, *LAST)
    assert run.end() == 0, run.log.read_text()
    assert "Resuming from" in run.log.read_text()
    assert_same(whole, weights(folder))
    assert (folder / "logs" / "toy" / "mine" / "summary.json").is_file(), killed_at


def dies_while_saving(arguments: Sequence[str], log: Path) -> None:
    """Killed when the second checkpoint is on disk in part."""
    save, calls = torch.save, []

    def partial(value: Any, file: Any) -> None:
        save(value, file)
        calls.append(file)
        if len(calls) == 2:
            file.truncate(file.tell() // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = partial
    work(arguments, log)


def test_killed_while_a_checkpoint_is_written(tiny_folder: Path, tmp_path: Path) -> None:
    whole = uninterrupted(tmp_path / "whole", tiny_folder, "lora")
    folder = tmp_path / "killed"
    folder.mkdir()
    config = write_config(folder, tiny_folder, FAMILIES["lora"])
    assert Run(config, *LAST, target=dies_while_saving).end() == -signal.SIGKILL
    left = {path.name for path in (folder / "logs" / "toy" / "mine" / "checkpoints").iterdir()}
    assert left == {"step=2.ckpt", "last.ckpt", "step=4.ckpt.tmp"}
    run = Run(config, *LAST)
    assert run.end() == 0, run.log.read_text()
    assert "step=2.ckpt" in run.log.read_text()
    assert_same(whole, weights(folder))


def test_killed_in_the_final_evaluation(tiny_folder: Path, tmp_path: Path) -> None:
    """All steps are done; what is left is to score, save the adapter and report."""
    config = write_config(tmp_path, tiny_folder, FAMILIES["lora"])
    run = Run(config, target=dies_in_the_final_evaluation)
    assert run.end() == -signal.SIGKILL, run.log.read_text()
    folder = tmp_path / "logs" / "toy" / "mine"
    assert not (folder / "summary.json").exists()
    run = Run(config, *LAST)
    assert run.end() == 0, run.log.read_text()
    assert json.loads((folder / "summary.json").read_text())["cost"]["steps"] == 12
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()


def dies_in_the_final_evaluation(arguments: Sequence[str], log: Path) -> None:
    """Killed when the trained model is about to be scored."""
    from mllm_lit.callbacks.forgetting import ForgettingCallback

    ForgettingCallback.on_train_end = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
    work(arguments, log)


def test_a_signal_saves_and_ends_cleanly(tiny_folder: Path, tmp_path: Path) -> None:
    """With accumulation, so that the signal comes between two micro-batches of a step."""
    more = ("--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "4")
    whole = tmp_path / "whole"
    whole.mkdir()
    assert Run(write_config(whole, tiny_folder, FAMILIES["lora"]), *more).end() == 0
    folder = tmp_path / "stopped"
    folder.mkdir()
    config = write_config(folder, tiny_folder, FAMILIES["lora"])
    config.write_text(config.read_text().replace("every_n_train_steps: 2", "every_n_train_steps: 100"))
    run_folder = folder / "logs" / "toy" / "mine"
    for number, step in ((signal.SIGTERM, 3), (signal.SIGUSR1, 6), (signal.SIGINT, 9)):
        run = Run(config, *more, *LAST)
        run.wait_for(step)
        os.kill(run.process.pid, number)
        assert run.end() == 0, run.log.read_text()
        assert "Stopped by a signal at optimizer step" in run.log.read_text()
        assert not (run_folder / "summary.json").exists()
        stored = torch.load(run_folder / "checkpoints" / "last.ckpt", weights_only=True)
        assert step <= stored["global_step"] < 12
    run = Run(config, *more, *LAST)
    assert run.end() == 0, run.log.read_text()
    assert_same(weights(whole), weights(folder))


def stops_in_the_first_evaluation(arguments: Sequence[str], log: Path) -> None:
    """A signal while the untrained model is scored."""
    from mllm_lit.module import MLLMModule

    evaluate = MLLMModule.evaluate

    def signalled(self: MLLMModule, *args: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, *args)

    MLLMModule.evaluate = signalled  # type: ignore[method-assign]
    work(arguments, log)


def test_an_evaluation_before_training_that_a_signal_ends_is_gone_on_with(tiny_folder: Path, tmp_path: Path) -> None:
    one_by_one = ("--data.eval_tokens", "1")
    config = write_config(tmp_path, tiny_folder, FAMILIES["lora"])
    run = Run(config, *one_by_one, target=stops_in_the_first_evaluation)
    assert run.end() == 0, run.log.read_text()
    assert "in the evaluation before training. Its answers so far are kept. Go on with:" in run.log.read_text()
    folder = tmp_path / "logs" / "toy" / "mine"
    assert not (folder / "checkpoints").exists()
    (begun,) = (folder / "predictions" / "before").iterdir()
    assert (begun.name, len(begun.read_text().splitlines())) == ("toy.rank0.partial", 2)
    begun.write_text(begun.read_text().replace('"prediction": "', '"prediction": "kept '))
    run = Run(config, *one_by_one, *LAST)
    assert run.end() == 0, run.log.read_text()
    (whole,) = (folder / "predictions" / "before").glob("[!.]*")
    lines = whole.read_text().splitlines()
    assert [json.loads(line)["prediction"].startswith("kept ") for line in lines].count(True) == 1
    assert len(lines) == 2


def test_a_second_interrupt_ends_at_once() -> None:
    """The first asks for the end of the step and gives Python's own handler back."""
    before = signal.getsignal(signal.SIGINT)
    callback = TrainableCheckpoint()
    try:
        callback._on_interrupt(signal.SIGINT, None)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
