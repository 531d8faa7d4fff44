"""The first line of a command and its first refusals come before the libraries that take seconds."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mllm_lit.begin import OPTIONS, begin
from mllm_lit.cli import MLLMCLI
from mllm_lit.errors import UsageError
from tests.conftest import REPOSITORY

CONFIG = str(REPOSITORY / "configs" / "scienceqa_lora.yaml")


def fit(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", str(REPOSITORY / "tools" / "fit.py"), *words]
    env = os.environ | {"MLLM_LIT_TRACEBACK": "0"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=env)


def heavy(text: str) -> list[str]:
    """Which of the libraries the lines of ``-X importtime`` name."""
    names = {line.rpartition("|")[2].strip() for line in text.splitlines() if line.startswith("import time:")}
    return sorted(names & {"torch", "lightning", "transformers", "peft", "matplotlib"})


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "configs/scienceqa_lora.yml"], "there is no such file"),
        (["--config", CONFIG, "--modle.adapter.rank", "8"], "did you mean model"),
        (["--config", CONFIG, "--model.adapter", "lorra"], "did you mean lora"),
        (["tset", "--config", CONFIG], "did you mean test"),
    ],
)
def test_errors_come_before_the_libraries(words: list[str], message: str) -> None:
    done = fit(*words)
    assert done.returncode == 2
    said = [line for line in done.stderr.splitlines() if not line.startswith("import time:")]
    assert said[0].startswith("mllm_lit ")
    assert words[1] in said[0]
    assert message in done.stderr
    assert not heavy(done.stderr)


@pytest.mark.slow
def test_the_first_line_is_ahead_and_leaves_the_output_alone() -> None:
    done = fit("--config", CONFIG, "--print_config")
    head, _, rest = done.stderr.partition("mllm_lit ")
    assert not heavy(head)
    assert "torch" in heavy(rest)
    assert yaml.safe_load(done.stdout)["trainer"]["max_epochs"] == 3


def test_the_options_are_those_of_the_parser() -> None:
    config = MLLMCLI(["--config", CONFIG, "--trainer.fast_dev_run", "true"]).config
    assert set(vars(config)) == OPTIONS


def test_a_files_misspelt_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("trainr: {max_epochs: 1}\n")
    with pytest.raises(UsageError, match=r"mine\.yaml: there is no setting 'trainr'; did you mean trainer"):
        begin(["fit", "--config", str(path)])


def test_settings_may_be_given_as_text(capfd: pytest.CaptureFixture[str]) -> None:
    begin(["--config", "{model: {adapter: configs/adapters/small_lora.yaml}}"])
    assert "model" in capfd.readouterr().err
    with pytest.raises(UsageError, match="it is a folder"):
        begin(["--config", str(REPOSITORY)])


def test_only_the_first_rank_speaks(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    begin(["--config", CONFIG])
    assert "scienceqa_lora" in capfd.readouterr().err
    monkeypatch.setenv("LOCAL_RANK", "1")
    begin(["--config", CONFIG])
    assert not capfd.readouterr().err
