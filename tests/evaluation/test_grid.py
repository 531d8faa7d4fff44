"""Pictures with their texts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mllm_lit.evaluation.grid import GAP, PICTURE, WIDTH, font, grid, lines
from tests.toy import Toy


@given(st.text(), st.integers(60, 500), st.integers(1, 5))
def test_lines_fit_and_hold_the_text(text: str, width: int, most: int) -> None:
    found = lines(text, width, most)
    assert 1 <= len(found) <= most
    assert all(font().getlength(line) <= width for line in found)
    said, whole = "".join(found).replace(" ", ""), "".join(text.split())
    assert said == whole or (said.endswith("…") and whole.startswith(said[:-1].strip()))


@pytest.mark.parametrize(
    ("score", "colour"), [(1.0, (27, 122, 52)), (0.0, (179, 38, 30)), (None, (85, 85, 85))], ids=str
)
def test_a_sample_is_drawn_beside_its_texts(tmp_path: Path, score: float | None, colour: Any) -> None:
    sample = Toy().rows(tmp_path, "test")[0]
    record: Any = {"question": "what colour?", "answer": "red", "prediction": "red", "score": score}
    picture = grid([(sample, record)] * 3)
    height = PICTURE + 2 * GAP
    assert picture.shape == (3 * height, WIDTH, 3)
    assert {tuple(pixel) for pixel in picture[GAP : GAP + PICTURE, GAP : GAP + PICTURE].reshape(-1, 3)} == {(255, 0, 0)}
    assert np.all(picture[:height, PICTURE + GAP :] == colour, axis=-1).any()
    long = record | {"question": "word " * 200, "answer": "word " * 200}
    assert len(grid([(sample, long)])) > height
    assert Image.fromarray(picture).size == (WIDTH, 3 * height)
