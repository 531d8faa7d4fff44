"""Every command of docs/study.md, and every overlay of the trainer, is understood by the command line."""

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.cli import MLLMCLI
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow


class Parse(MLLMCLI):
    """The command line up to where anything is built."""

    def instantiate_classes(self) -> None:
        pass


def parse(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> Any:
    command = words.pop(0) if words[0] in ("fit", "test") else "fit"
    return Parse(words, command).config


def commands(file: Path) -> list[list[str]]:
    """What the shell makes of a page's blocks, loops and all."""
    blocks = re.findall(r"```bash\n(.*?)```", file.read_text(encoding="utf-8"), flags=re.S)
    script = 'python() { printf "%q " "$@"; echo; }\n' + "\n".join(blocks)
    done = subprocess.run(["bash", "-euc", script], capture_output=True, text=True, check=True)
    return [shlex.split(line)[1:] for line in done.stdout.splitlines()]


def test_every_command_of_the_study_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    found = commands(REPOSITORY / "docs" / "study.md")
    assert len(found) == 8 + 9 + 3 * (4 + 4 + 4) + 9 + 12 + 2
    runs = {(words[words.index("--experiment") + 1], words[words.index("--version") + 1]) for words in found}
    assert len(runs) == len(found), "each has a run directory of its own"
    # Those that differ in a number or a name alone are one case.
    kinds = {re.sub(r"--version \S+|\d\S*", "", " ".join(words[2:])): words for words in found}
    seen = set()
    for words in kinds.values():
        config = parse(monkeypatch, words)
        adapter = config["model"]["adapter"]
        seen.add((adapter["class_path"].rpartition(".")[2], adapter["init_args"]["connector"]))
        assert config["trainer"]["precision"] == "bf16-mixed"
        assert config["trainer"]["accumulate_grad_batches"] * config["data"]["init_args"]["batch_size"] == 128
    methods = ("LoRA", "Bottleneck", "IA3", "Prefix")
    assert seen == {(method, mode) for method in methods for mode in ("tuned", "frozen")}


@pytest.mark.parametrize("name", ["gpu_bf16", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3"])
def test_trainer_overlays_keep_the_rest(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    base = str(REPOSITORY / "configs" / "scienceqa_lora.yaml")
    overlay = str(REPOSITORY / "configs" / "trainer" / f"{name}.yaml")
    trainer = parse(monkeypatch, ["--config", base, "--trainer", overlay])["trainer"]
    assert trainer["gradient_clip_val"] == 1.0
    strategy = trainer["strategy"]
    expected = {
        "gpu_bf16": "auto",
        "ddp": "ddp_find_unused_parameters_true",
        "fsdp2": "mllm_lit.strategies.FSDP2Strategy",
    }
    found = strategy if isinstance(strategy, str) else strategy["class_path"]
    assert found == expected.get(name, "lightning.pytorch.strategies.DeepSpeedStrategy")
    if name.startswith("deepspeed"):
        assert strategy["init_args"]["stage"] == int(name[-1])
