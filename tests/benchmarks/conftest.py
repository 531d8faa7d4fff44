"""The scripts of benchmarks/ import each other by name."""

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
