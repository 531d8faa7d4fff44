"""Examples in docstrings do what they say."""

import doctest
from importlib import import_module

import pytest

from tests.test_floors import FILES

WITH_EXAMPLES = sorted(name for name, path in FILES.items() if ">>> " in path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples(name: str) -> None:
    failed, tried = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert tried
    assert not failed
