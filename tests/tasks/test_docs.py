"""docs/tasks.md says what the code does: every file, tree, prompt and figure."""

import json
from textwrap import dedent

import pytest

from mllm_lit.tasks.iconqa import PROMPTS
from mllm_lit.tasks.textvqa import WITH_OCR
from tests.conftest import REPOSITORY
from tests.tasks.releases import TASKS

TEXT = (REPOSITORY / "docs" / "tasks.md").read_text(encoding="utf-8")
PROSE = " ".join(TEXT.split())


@pytest.mark.parametrize("name", TASKS)
def test_a_set_is_described_as_it_is(name: str) -> None:
    task = TASKS[name]
    tree = dedent(task.expected_tree).strip().splitlines()
    assert all(f"    {line}\n" in TEXT for line in tree)
    assert f"· {task.published_at} " in PROSE
    assert f"`{task.default_prompt}`" in TEXT


def test_every_file_and_prompt_is_there() -> None:
    files = [*(REPOSITORY / "configs/tasks").glob("*.yaml"), *(REPOSITORY / "configs/sources").glob("*.yaml")]
    assert [file.name for file in files if file.stem not in TEXT] == []
    assert all(f"`{prompt}`" in TEXT for prompt in [*PROMPTS.values(), WITH_OCR])


def test_figures_are_those_that_were_measured() -> None:
    results = REPOSITORY / "benchmarks" / "results"
    for name, figures in json.loads((results / "ptb_agreement.json").read_text())["corpora"].items():
        row = f"| {name} | {figures['texts']:,} | {figures['equal']:,} | {100 * figures['agreement']:.2f} % |"
        assert row in TEXT
    seconds = json.loads((results / "scoring.json").read_text())["seconds"]
    captions, theirs, vqa, loops = (
        seconds[key] for key in ("captions", "captions, pycocoevalcap", "vqa", "vqa, loops")
    )
    assert f"took {captions:.1f} s against pycocoevalcap's {theirs:.1f} s" in PROSE
    assert f"{vqa:.2f} s against {loops:.1f} s of the official" in PROSE
