"""The command line in a process of its own that can be killed; a fork server imports everything once."""

import multiprocessing as mp
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
import yaml

import mllm_lit.cli
from tests.conftest import REPOSITORY

CONFIGS = REPOSITORY / "configs"
SERVER = mp.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.checkpoints.process", "peft", "transformers.models.llava", "tests.tiny"])


class Progress(L.Callback):
    """Tells the parent how far a run is."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        self.path.write_text(str(trainer.global_step))


def write_config(folder: Path, backbone: Path, adapter: dict[str, Any], **more: Any) -> Path:
    """A run of 12 optimizer steps in two epochs on the toy task, with dropout, a checkpoint every other step."""
    data = folder / "data"
    data.mkdir(exist_ok=True)
    checkpoint = {"class_path": "mllm_lit.callbacks.TrainableCheckpoint", "init_args": {"every_n_train_steps": 2}}
    progress = {"class_path": "tests.checkpoints.process.Progress", "init_args": {"path": str(folder / "progress")}}
    settings: dict[str, Any] = {
        "model": {
            "backbone": {"class_path": "mllm_lit.backbones.Backbone", "init_args": {"path": str(backbone)}},
            "adapter": adapter,
            **more,
        },
        "data": {
            "class_path": "mllm_lit.data.VQADataModule",
            "init_args": {
                "task": {"class_path": "tests.toy.Toy"},
                "root": str(data),
                "batch_size": 4,
                "max_eval_samples": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "gradient_clip_val": 1.0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "callbacks": [checkpoint, progress],
        },
        "output": str(folder / "logs"),
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def work(arguments: Sequence[str], log: Path) -> None:
    """Run the command line; its output goes to a file."""
    stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    torch.set_num_threads(1)
    sys.argv = ["fit.py", *arguments]
    mllm_lit.cli.main(arguments)


class Run:
    """A process that fits, in the run directory ``mine``."""

    def __init__(self, config: Path, *arguments: str, target: Any = work) -> None:
        self.folder, self.log = config.parent, config.parent / "log.txt"
        (self.folder / "progress").unlink(missing_ok=True)
        words = ["fit", "--config", str(config), "--version", "mine", *arguments]
        self.process = SERVER.Process(target=target, args=(words, self.log))  # type: ignore[attr-defined]
        self.process.start()

    def step(self) -> int:
        """Optimizer steps done, -1 before the first begins."""
        try:
            return int((self.folder / "progress").read_text() or -1)
        except FileNotFoundError:
            return -1

    def wait_for(self, step: int) -> None:
        """Until that many steps are done, or the process ends."""
        limit = time.monotonic() + 120
        while self.step() < step and self.process.is_alive():
            assert time.monotonic() < limit, self.log.read_text()
            time.sleep(0.002)

    def end(self) -> int:
        """Wait for the process and give its exit status."""
        self.process.join(120)
        assert self.process.exitcode is not None, self.log.read_text()
        return int(self.process.exitcode)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What a run's last checkpoint holds."""
    path = folder / "logs" / "toy" / "mine" / "checkpoints" / "last.ckpt"
    stored = torch.load(path, weights_only=True)
    assert stored["global_step"] == 12
    tensors: dict[str, torch.Tensor] = stored["state_dict"]
    return tensors
