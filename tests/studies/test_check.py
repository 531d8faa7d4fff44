"""What would stop a sequence in the middle is refused before its first stage."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_lit.studies import Plan, StudyError, read_study
from mllm_lit.studies.check import check_plan
from mllm_lit.studies.identity import facts
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.slow
SMALL = "configs/adapters/small_{}.yaml"
LORA = {"model.adapter": SMALL.format("lora")}
PISSA = {**LORA, "model.adapter.init": "pissa"}


def plan(folder: Path, start: str, first: dict[str, Any], second: dict[str, Any]) -> Plan:
    stages = {
        "scienceqa": {"data": "configs/tasks/scienceqa.yaml", **first},
        "iconqa": {"data": "configs/tasks/iconqa_fill_in_blank.yaml", **second},
    }
    content = {
        "name": "two",
        "question": "?",
        "options": {"config": "configs/scienceqa_lora.yaml"},
        "axes": {"seed": [1]},
    }
    file = folder / "two.yaml"
    file.write_text(yaml.safe_dump({**content, "stages": stages, "start": start}, sort_keys=False))
    return Plan(read_study(file), facts, lambda cell: None)


@pytest.mark.parametrize(
    ("start", "first", "second", "message"),
    [
        ("merge", {"model.adapter": SMALL.format("bottleneck")}, LORA, "Bottleneck adds computations.*Set start: keep"),
        ("merge", {"model.adapter": SMALL.format("prefix")}, LORA, "Prefix adds computations"),
        ("keep", LORA, {"model.adapter": SMALL.format("ia3")}, "adapters.IA3 cannot go on with .*LoRA"),
        ("keep", LORA, {**LORA, "model.adapter.rank": 3}, "differ in rank 16 and 3"),
        (
            "keep",
            PISSA,
            PISSA,
            "init: pissa changes",
        ),
        ("keep", LORA, {**LORA, "data.root": "nowhere/iconqa"}, "data.root: there is no folder 'nowhere/iconqa'"),
    ],
)
def test_it_is_named(
    start: str,
    first: dict[str, Any],
    second: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(REPOSITORY)
    with pytest.raises(StudyError, match=message):
        check_plan(plan(tmp_path, start, first, second))


@pytest.mark.parametrize("start", ["keep", "merge"])
def test_what_can_follow_is_taken(start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    check_plan(plan(tmp_path, start, LORA, {**LORA, "model.adapter.lr": 1e-5, "model.adapter.dropout": 0.1}))


def test_a_choice_by_sources_that_are_not_scored_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    rate = {"rates": [1e-4, 1e-3], "score": "O", "options": {"data.sources": None}}
    options = {"config": "configs/scienceqa_lora.yaml"}
    file = tmp_path / "one.yaml"
    file.write_text(yaml.safe_dump({"name": "one", "question": "?", "options": options, "rate": rate}))
    with pytest.raises(StudyError, match="rates are to be chosen by O, and the runs that choose have no sources"):
        check_plan(Plan(read_study(file), facts, lambda cell: None))
