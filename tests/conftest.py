"""Fixtures that every test may use."""

import os
from pathlib import Path

import pytest

# Nothing here may reach a network, whatever the machine would allow.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Errors reach the tests that run the command line in their own process.
os.environ["MLLM_LIT_TRACEBACK"] = "1"

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def run_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seed for every test, as `seed_everything` would set it."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "42")


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random LLaVA as a Hugging Face folder."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))
