"""Random streams: each has a name and one use, and no two give the same numbers."""

import ast
from collections import Counter

import pytest

from mllm_lit.seed import Stream, mix, stream_seed
from tests.conftest import REPOSITORY

FILES = [file for room in ("mllm_lit", "tools") for file in sorted((REPOSITORY / room).rglob("*.py"))]


def test_every_stream_is_drawn_from_in_one_place() -> None:
    used: Counter[str] = Counter()
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "Stream":
                used[node.attr] += 1
    assert used == {stream.name: 1 for stream in Stream}


def test_no_stream_is_drawn_from_by_number() -> None:
    """Only the seed's own module may mix."""
    for file in FILES:
        if file.name == "seed.py":
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == "mllm_lit.seed":
                assert "mix" not in {name.name for name in node.names}, file
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "stream_seed":
                assert isinstance(node.args[0], ast.Attribute), file


def test_streams_and_places_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds = {stream_seed(stream, *place) for stream in Stream for place in ((), (0,), (1,), (0, 1), (1, 0))}
    assert len(seeds) == len(Stream) * 5
    here = stream_seed(Stream.ADAPTER)
    monkeypatch.setenv("PL_GLOBAL_SEED", "43")
    assert stream_seed(Stream.ADAPTER) != here


def test_what_was_drawn_before_is_drawn_again() -> None:
    """Results of earlier versions stand only while these numbers do."""
    assert {stream.name: int(stream) for stream in Stream} == {
        "ADAPTER": 1,
        "DROPOUT": 2,
        "RULE": 3,
        "PROBED_ROWS": 4,
        "PROBED_DROPOUT": 5,
        "CONNECTOR": 6,
        "ADAPTER_INPUTS": 7,
    }
    assert stream_seed(Stream.DROPOUT, 1, 2, 3) == mix(42, 2, 1, 2, 3)
    assert mix(0) == 0xE220A8397B1DCDAF % 2**63  # the first number of SplitMix64
