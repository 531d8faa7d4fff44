"""What a study consists of: rates chosen on validation, merges, stages, and by what a cell is known."""

import json
from pathlib import Path
from typing import Any

import yaml

from mllm_lit.studies import Cell, Plan
from mllm_lit.studies.plan import words_of
from tests.studies.toy import STUDY, planned, study, told

RATE = "model.adapter.lr"


def finish(plan: Plan, scores: dict[float, float]) -> list[Cell]:
    """Every cell, each rate having scored so much when it was tried."""

    def summary(cell: Cell) -> Any:
        return {"target": {"after": scores[cell.options[RATE]]}, "tradeoff": {}}

    return Plan(plan.study, told, summary).cells()


def test_rates_are_chosen_on_validation_and_of_equal_ones_the_smallest(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path)
    waiting = plan.cells()
    choosing = [cell for cell in waiting if cell.choosing]
    assert [cell.options[RATE] for cell in choosing] == [0.001, 0.01, 0.1]  # LoRA has one rate alone
    assert all(cell.options["data.test_split"] == "val" and cell.options["seed_everything"] == 7 for cell in choosing)
    full = [cell for cell in waiting if cell.labels.get("method") == "full" and not cell.choosing]
    assert [cell.key for cell in full] == [None, None]
    assert full[0].waits == tuple(cell.key for cell in choosing)
    chosen = [cell for cell in finish(plan, {0.1: 40, 0.01: 50, 0.001: 50, 0.5: 1}) if not cell.choosing]
    assert {cell.options[RATE] for cell in chosen if cell.labels["method"] == "full"} == {0.001}
    assert all("data.test_split" not in cell.options for cell in chosen)


def test_a_rate_is_chosen_for_each_value_of_the_axes_that_it_is_chosen_by(tmp_path: Path) -> None:
    axes = {"method": {"full": {"a.method": "full"}}, "task": {"x": {"a.task": "x"}, "y": {"a.task": "y"}}, "seed": [1]}
    by_all, _ = planned(tmp_path, axes=axes, rate={"rates": [1, 2], "options": {"seed_everything": 7}})
    assert len([cell for cell in by_all.cells() if cell.choosing]) == 4
    by_method, _ = planned(tmp_path, axes=axes, rate=STUDY["rate"])
    choosing = [cell for cell in by_method.cells() if cell.choosing]
    assert [cell.options["a.task"] for cell in choosing] == ["x", "x", "x"]


def test_a_merge_depends_on_the_run_that_it_merges(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, rate={"rates": [0.01]})
    merges = [cell for cell in plan.cells() if cell.merge]
    runs = {cell.key: cell for cell in plan.cells() if not cell.merge}
    assert [runs[cell.after.key].labels for cell in merges if cell.after] == [
        {"method": "full", "seed": "1"},
        {"method": "full", "seed": "2"},
    ]
    assert merges[0].key not in runs
    assert merges[0].key != merges[1].key


def test_a_cell_is_known_by_settings_and_data_and_not_by_its_name(tmp_path: Path) -> None:
    def keys(axes: dict[str, Any], **options: Any) -> set[str | None]:
        plan, _ = planned(tmp_path, axes=axes, rate=None, options=options)
        return {cell.key for cell in plan.cells()}

    first = keys({"method": {"a": {"x.y": 1}, "b": {"x.y": 2}}})
    assert first == keys({"renamed": {"c": {"x.y": 2}, "d": {"x.y": 1}}})
    assert len(first & keys({"method": {"a": {"x.y": 1}, "b": {"x.y": 3}}})) == 1
    assert first == keys({"method": {"a": {"x.y": 1}, "b": {"x.y": 2}}}, **{"new.option": None})
    assert not first & keys({"method": {"a": {"x.y": 1}, "b": {"x.y": 2}}}, **{"new.option": 0})
    same = study(tmp_path, axes={"method": {"a": {"x.y": 1}}}, rate=None, options={})
    other = Plan(same, lambda words: told(words) | {"data": "other"}, lambda cell: None).cells()[0].key
    assert other not in first
    code = Plan(same, lambda words: told(words) | {"code": "other"}, lambda cell: None).cells()[0].key
    assert code in first


def test_values_that_come_to_the_same_settings_are_one_cell(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, axes={"method": {"a": {"x.y": 1}, "b": {"x.y": 1}}}, rate=None)
    assert len(plan.cells()) == 1
    assert len(plan.reported()) == 2


STAGES = {"one": {"data.task": "One"}, "two": {"data.task": "Two"}, "three": {"data.task": "Three"}}
SEQUENCE: dict[str, Any] = {
    "axes": {
        "method": {
            "kept": {},
            "merged": {"model.start": "merge"},
            "replay": {"data.replay": 0.1, "data.replay_from": "earlier"},
        },
        "seed": [1],
    },
    "stages": STAGES,
    "rate": None,
}


def test_a_stage_starts_from_the_one_before_and_scores_the_others(tmp_path: Path) -> None:
    plan, _ = planned(tmp_path, **SEQUENCE)
    cells = plan.reported()
    kept, merged, replay = cells[:3], cells[3:6], cells[6:]
    assert [cell.labels["stage"] for cell in kept] == ["one", "two", "three"]
    assert [cell.after and cell.after.key for cell in kept] == [None, kept[0].key, kept[1].key]
    assert [cell.options.get("model.start") for cell in kept] == [None, "keep", "keep"]
    assert [cell.options.get("model.start") for cell in merged] == [None, "merge", "merge"]
    assert kept[0].key == merged[0].key
    assert len(plan.cells()) == len(cells) - 2  # the first stage is one run for all three
    assert [cell.options["data.name"] for cell in kept] == ["one", "two", "three"]
    others = [cell.options["data.others"]["init_args"]["sets"] for cell in kept]
    assert [list(one) for one in others] == [["two", "three"], ["one", "three"], ["one", "two"]]
    assert others[0]["two"] == {"task": {"class_path": "Two"}}
    assert [cell.options.get("data.replay_from") for cell in replay] == [None, ["one"], ["one", "two"]]
    assert [cell.options.get("data.replay") for cell in replay] == [None, 0.1, 0.1]


def test_a_stage_is_another_cell_where_what_it_starts_from_is(tmp_path: Path) -> None:
    def last(**first: Any) -> str | None:
        plan, _ = planned(tmp_path, **SEQUENCE | {"stages": {**STAGES, "one": STAGES["one"] | first}})
        return plan.cells()[2].key

    assert last() == last()
    assert last() != last(**{"data.max_samples": 5})


def test_words_put_a_part_before_what_is_changed_in_it() -> None:
    options = {"model.adapter.rank": 4, "model.adapter": "lora.yaml", "seed_everything": 3, "config": ["a", "b"]}
    words = words_of(options | {"x.y": "-1"})
    assert words[:4] == ["--config", "a", "--config", "b"]
    assert words.index("--model.adapter") < words.index("--model.adapter.rank")
    assert "--x.y=-1" in words
    assert yaml.safe_load(json.dumps(words)) == words


def test_the_rate_of_a_sequence_is_chosen_on_its_first_stage(tmp_path: Path) -> None:
    """Which has nothing before it: neither a start nor earlier sets."""
    plan, _ = planned(tmp_path, **SEQUENCE | {"rate": {"rates": [0.1, 0.01]}})
    for cell in [cell for cell in plan.cells() if cell.choosing]:
        assert cell.options["data.task"] == "One"
        assert not {"model.start", "data.replay", "data.replay_from"} & cell.options.keys()
