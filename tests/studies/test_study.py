"""Study files: what they may say, what is laid over them, and what is refused before anything runs."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mllm_lit.studies import StudyError, read_study
from mllm_lit.studies.study import text
from tests.studies.toy import study, write

METHODS = {"full": {}, "lora": {}}


def combinations(folder: Path, **changes: Any) -> list[str]:
    return [" ".join(labels.values()) for labels in study(folder, rate=None, **changes).combinations()]


def test_axes_are_crossed_zipped_and_excluded(tmp_path: Path) -> None:
    axes = {"size": {"small": {}, "large": {}}, "model.adapter.rank": [8, 64], "method": METHODS}
    assert combinations(tmp_path, axes=axes)[:3] == ["small 8 full", "small 8 lora", "small 64 full"]
    assert len(combinations(tmp_path, axes=axes)) == 8
    together = combinations(tmp_path, axes=axes, zip=[["size", "model.adapter.rank"]])
    assert together == ["small 8 full", "small 8 lora", "large 64 full", "large 64 lora"]
    left = combinations(
        tmp_path, axes=axes, exclude=[{"method": "lora", "size": ["small", "large"]}, {"size": "small"}]
    )
    assert left == ["large 8 full", "large 64 full"]


def test_a_list_is_of_values_of_the_option_that_the_axis_is_called_by(tmp_path: Path) -> None:
    read = study(tmp_path, axes={"model.adapter.rank": [8, 64], "seed": [3]}, rate=None)
    (value, seed) = read.values(next(read.combinations()))
    assert (value.options, seed.options) == ({"model.adapter.rank": 8}, {"seed_everything": 3})


def test_an_overlay_is_laid_over_key_by_key(tmp_path: Path) -> None:
    over = {
        "options": {"data.root": "data", "data.max_samples": None},
        "axes": {"method": {"lora": {"model.adapter.rank": 128}}, "task": {"vqa": {}}},
        "replace": {"full.yaml": "large_full.yaml"},
        "rate": None,
    }
    (tmp_path / "over.yaml").write_text(yaml.safe_dump(over))
    changed = read_study(
        write(tmp_path / "a.yaml", axes={"method": {"full": {"model.adapter": "full.yaml"}, "lora": {"a.b": 1}}}),
        [tmp_path / "over.yaml"],
    )
    assert changed.file.name == "toy_over", "so that its results do not take the place of the study's"
    assert changed.file.options == {"config": "base.yaml", "data.root": "data"}
    assert changed.file.rate is None
    assert list(changed.axes) == ["method"]
    assert changed.axes["method"]["full"].options == {"model.adapter": "large_full.yaml"}
    assert changed.axes["method"]["lora"].options == {"a.b": 1, "model.adapter.rank": 128}


def test_values_as_words() -> None:
    values = [1e-05, 0.0001, 3, True, None, "null", "a b", [1, "x"], {"class_path": "a.B", "init_args": {"c": None}}]
    expected = ["1e-05", "0.0001", "3", "true", "null", "null", "a b", "[1, x]"]
    assert [text(value) for value in values] == [*expected, "{class_path: a.B, init_args: {c: null}}"]
    assert all(yaml.safe_load(text(value)) == value for value in values if value not in ("null", 1e-05))


CLAIM = {"says": "a", "source": "b", "higher": {"method": "full"}, "lower": {"method": "lora"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"question": None}, "question"),
        ({"colour": "red"}, "unknown field `colour`"),
        ({"name": "a b"}, "name"),
        ({"axes": {"method": {}}}, "every combination of the axes is excluded"),
        ({"axes": {"rank": [1]}}, "axes.rank is a list"),
        ({"axes": {"a.b": [1, 1]}}, "a value twice"),
        ({"axes": {"seed": [-1]}}, "whole numbers from 0"),
        ({"axes": {"seed": ["x"]}}, "whole numbers from 0"),
        ({"axes": {"method": {"a": {"rates": [0]}}}}, r"axes.method.a.rates"),
        ({"axes": {"method": {"a": {"rates": [0.1]}}}, "rate": None}, "does not say rate"),
        ({"axes": {"method": {"a": {"merge": "wise_ft"}}}}, "has merge and of"),
        ({"axes": {"method": {"a": {"merge": "ties", "of": "a"}}}}, "no trained value"),
        ({"axes": {"method": {"b": {}, "a": {"merge": "ties_and_dyes", "of": "b"}}}}, "ties_and_dyes"),
        ({"axes": {"method": {"b": {}, "a": {"merge": "dare", "of": "b", "arguments": {"colour": 1}}}}}, "colour"),
        ({"axes": {"method": {"b": {}, "a": {"merge": "wise_ft", "of": "b"}}}}, "point is 'wise_ft', expected .*0.00'"),
        (
            {"axes": {"method": {"b": {}, "a": {"merge": "wise_ft", "of": "b", "point": "alpha 0.5"}}}},
            "a.point is 'alpha 0.5', expected one of .*'alpha 0.50'",
        ),
        ({"exclude": [{"method": "full"}]}, "merges runs that exclude leaves out"),
        ({"exclude": [{"model": "full"}]}, "exclude names the axis 'model'"),
        ({"exclude": [{"method": "fool"}]}, "exclude names method: fool; there are full, lora, wise_ft"),
        ({"zip": [["method", "seed"]]}, r"zip: .* have \[2, 3\] values"),
        ({"claims": [CLAIM | {"higher": {"method": "ia3"}}]}, "the claim 'a' names method: ia3"),
        ({"claims": [CLAIM | {"lower": {"size": "1"}}]}, "the claim 'a' names the axis 'size'"),
        ({"tables": [{"score": "H", "columns": "task"}]}, "the table of H names the axis 'task'"),
        ({"correlations": [{"score": "H", "by": "O", "columns": "task"}]}, "correlation of H names the axis 'task'"),
        ({"correlations": [{"score": "H", "by": "O", "columns": "seed"}]}, "columns: seed cannot be had"),
        ({"spreads": [{"score": "H", "over": ["task"]}]}, "the spread of H names the axis 'task'"),
        ({"wins": [{"scores": ["H"], "axis": "task", "over": ["a"]}]}, "wins of H names the axis 'task'"),
        ({"wins": [{"scores": ["H"], "axis": "method", "over": ["fool"]}]}, "wins of H names method: fool"),
        ({"wins": [{"scores": ["H"], "axis": "seed", "over": ["1"]}]}, "axis: seed cannot be had"),
        ({"tables": [{"score": "H", "columns": "seed", "at": "best"}]}, "at"),
        ({"rate": {"rates": [0.1], "by": ["task"]}}, "rate.by names the axis 'task'"),
        ({"rate": {"rates": [-0.1]}}, "rates"),
        (
            {
                "axes": {
                    "method": {"b": {}, "a": {"merge": "dare", "of": "b"}},
                    "other": {"b": {}, "a": {"merge": "dare", "of": "b"}},
                }
            },
            "the axes method, other have merges",
        ),
        ({"stages": {"a": {}}}, "a sequence has no merges"),
        ({"stages": {"a b": {}}}, "stages"),
        ({"start": "again"}, "start"),
    ],
)
def test_refusals(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message) as error:
        study(tmp_path, **changes)
    assert type(error.value).__module__.startswith("mllm_lit")


@pytest.mark.parametrize(
    ("content", "message"), [("a: [", "no readable YAML"), ("- a", "holds list"), ("", "NoneType")]
)
def test_files_that_are_no_study(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "a.yaml").write_text(content)
    with pytest.raises(StudyError, match=message):
        read_study(tmp_path / "a.yaml")


def test_two_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", axes={"seed": [1]}, rate=None)
    file.write_text(file.read_text() + "stages:\n  one: {data: a}\n  one: {data: b}\n")
    with pytest.raises(StudyError, match="one.*twice|twice.*one"):
        read_study(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="no file .*nowhere.yaml"):
        read_study(tmp_path / "nowhere.yaml")
