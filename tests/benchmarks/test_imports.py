"""Every script that measures can be started."""

from importlib import import_module

import pytest

from tests.conftest import REPOSITORY

SCRIPTS = sorted(file.stem for file in (REPOSITORY / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_what_a_script_imports_is_there(name: str) -> None:
    import_module(f"benchmarks.{name}")
