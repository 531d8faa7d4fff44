"""The study files of the package: every cell's options are read by the command line, with and without the overlay."""

from pathlib import Path

import pytest

from mllm_lit.studies import Plan, Study, read_study
from mllm_lit.studies.identity import facts
from tests.conftest import REPOSITORY
from tests.studies.toy import told

LLAVA = REPOSITORY / "configs" / "studies" / "llava15.yaml"
FILES = sorted((REPOSITORY / "configs").glob("studies/*/*.yaml"))
SEQUENCES = sorted((REPOSITORY / "configs" / "sequences").glob("*.yaml"))


def one_of_each(study: Study) -> list[list[str]]:
    """Command lines in which every value of every axis is once."""
    seen, words = set[tuple[str, str]](), list[list[str]]()
    for cell in Plan(study, told, lambda cell: None).cells():
        if cell.labels.items() - seen:
            words.append(cell.words())
            seen |= set(cell.labels.items())
    return words


@pytest.mark.slow
@pytest.mark.parametrize("overlays", [[], [LLAVA]], ids=["embedded", "llava15"])
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_value_is_taken_by_the_command_line(
    path: Path, overlays: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPOSITORY)
    for words in one_of_each(read_study(path, overlays)):
        settings = facts(words)["settings"]
        roots = {name: value for name, value in settings.items() if name.startswith("data.") and name.endswith("root")}
        outside = all(value not in (None, "None") for value in roots.values())
        assert roots
        assert outside == bool(overlays), f"on the releases with the overlay, and without it on embedded sets: {roots}"


@pytest.mark.parametrize("path", SEQUENCES, ids=lambda path: path.stem)
def test_every_stage_is_taken_by_the_command_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    study = read_study(path)
    plan = Plan(study, facts, lambda cell: None)
    first = next(study.combinations())
    cells = [cell for cell in plan.cells() if first.items() <= cell.labels.items()]
    assert [cell.labels["stage"] for cell in cells] == list(study.file.stages)
