"""The study files of the package: every cell's options are read by the command line, with and without the overlay."""

import runpy
from pathlib import Path

import pytest
import yaml

from mllm_lit.studies import Plan, Study, read_study
from mllm_lit.studies.identity import facts
from tests.conftest import REPOSITORY
from tests.studies.toy import told

LLAVA = REPOSITORY / "configs" / "studies" / "llava15.yaml"
FILES = sorted((REPOSITORY / "configs").glob("studies/*/*.yaml"))
SEQUENCES = sorted((REPOSITORY / "configs" / "sequences").glob("*.yaml"))


def one_of_each(study: Study, seen: set[str]) -> list[list[str]]:
    """Command lines in which every value of every axis is once, those left out that were seen before."""
    words: list[list[str]] = []
    for cell in Plan(study, told, lambda cell: None).cells():
        given = {str(study.axes[axis][label].options) for axis, label in cell.labels.items() if axis in study.axes}
        if given - seen:
            words.append(cell.words())
            seen |= given
    return words


@pytest.mark.slow
@pytest.mark.parametrize("overlays", [[], [LLAVA]], ids=["embedded", "llava15"])
def test_every_value_is_taken_by_the_command_line(overlays: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    seen: set[str] = set()
    for words in [words for path in FILES for words in one_of_each(read_study(path, overlays), seen)]:
        settings = facts(words)["settings"]
        roots = {name: value for name, value in settings.items() if name.startswith("data.") and name.endswith("root")}
        outside = all(value not in (None, "None") for value in roots.values())
        assert roots, words
        assert outside == bool(overlays), f"on the releases with the overlay, and without it on embedded sets: {roots}"


@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.stem)
def test_every_stage_is_taken_by_the_command_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    study = read_study(path)
    first = {axis: dict([next(iter(values.items()))]) for axis, values in study.axes.items()}
    cells = Plan(Study(study.file, first), facts, lambda cell: None).cells()
    assert [cell.labels["stage"] for cell in cells] == list(study.file.stages)


@pytest.mark.slow
def test_the_tool_prints_the_commands_of_a_sequence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of all methods, one seed; what is the same in two methods is printed once."""
    content = yaml.safe_load((REPOSITORY / "configs" / "sequences" / "embedded.yaml").read_text(encoding="utf-8"))
    content["axes"]["seed"] = [21]
    file = tmp_path / "sequence.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    monkeypatch.chdir(REPOSITORY)
    words = ["study.py", "run", str(file), "--dry_run", "--runs", str(tmp_path / "runs"), "--results", str(tmp_path)]
    monkeypatch.setattr("sys.argv", words)
    runpy.run_path("tools/study.py", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    commands = [line for line in lines if "tools/fit.py" in line]
    assert len(commands) == len(set(commands)) == 7 * 3 - 2  # LoRA merged and replay begin as LoRA kept and full do
    assert sum("--model.start_from" in line for line in commands) == 7 * 2
    assert all("mllm_lit.tasks.IconQA" in line.split("--data.others")[1] for line in commands)
    assert lines[-1] == "19 to do"
