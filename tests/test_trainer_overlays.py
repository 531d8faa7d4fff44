"""Every overlay of the trainer is understood by the command line, and keeps the rest."""

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


@pytest.mark.parametrize("name", ["gpu_bf16", "ddp", "fsdp2", "zero2"])
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
        "zero2": "mllm_lit.strategies.ZeROStrategy",
    }
    found = strategy if isinstance(strategy, str) else strategy["class_path"]
    assert found == expected[name]
