"""Metrics over the stages of a sequence, against a table computed by hand."""

from typing import Any

import numpy as np
import pytest

from mllm_lit.metrics.sequences import bwt, maa, mfn, mft, sequence_scores

NAN = float("nan")
ROWS = [
    [60.0, 20.0, NAN],  # scores of tasks that are still to come are not read
    [50.0, 70.0, 30.0],
    [30.0, 58.0, 90.0],
]
NAMES = ("gqa", "vizwiz", "ocrvqa")
TABLES: dict[str, Any] = {
    "rows": ROWS,
    "array": np.array(ROWS),
    "names": {NAMES[t]: {NAMES[i]: ROWS[t][i] for i in range(t + 1)} for t in range(3)},
}


@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_three_stages_by_hand(table: Any) -> None:
    assert mft(table) == pytest.approx(220 / 3)  # 60 + 70 + 90
    assert mfn(table) == pytest.approx(178 / 3)  # 30 + 58 + 90
    assert maa(table) == pytest.approx((60 + 60 + 178 / 3) / 3)  # 60; (50 + 70) / 2; the last row
    assert bwt(table) == pytest.approx(-21)  # 30 - 60 and 58 - 70
    assert sequence_scores(table) == {"MFT": mft(table), "MFN": mfn(table), "MAA": maa(table), "BWT": bwt(table)}


def test_a_single_stage_has_no_backward_transfer() -> None:
    assert sequence_scores([[80.0, 5.0]]) == {"MFT": 80, "MFN": 80, "MAA": 80, "BWT": None}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([], "the table of scores has no stage"),
        ({}, "the table of scores has no stage"),
        ([[60, 20], [50]], "the score of task 1 after stage 1 is missing"),
        (np.array([[60, 20], [NAN, 70]]), "the score of task 0 after stage 1 is nan"),
        ({"gqa": {"gqa": 60}, "vizwiz": {"vizwiz": 70}}, "the score of task 'gqa' after stage 'vizwiz' is missing"),
    ],
)
def test_a_score_that_is_needed_is_named(table: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sequence_scores(table)
