"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
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


@pytest.fixture(autouse=True)
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """One thread for the small models of quick tests, and where tests run side by side."""
    import torch

    before = torch.get_num_threads()
    if request.node.get_closest_marker("slow") is None or "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Pictures of several sizes (width, height), each of its own colours."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictures")
    sizes = [(48, 48), (64, 32), (30, 90), (100, 40), (37, 61), (120, 20)]
    for i, (width, height) in enumerate(sizes):
        image = Image.new("RGB", (width, height), (40 * i, 250 - 30 * i, 90 + 20 * i))
        image.paste((255 - 20 * i, 10, 30 * i), (0, 0, width // 2, height // 2))
        image.save(folder / f"{i}.png")
    return [folder / f"{i}.png" for i in range(len(sizes))]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny random LLaVA as a Hugging Face folder."""
    from tests.tiny import save_tiny

    return save_tiny(tmp_path_factory.mktemp("tiny"))
