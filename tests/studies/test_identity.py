"""A cell depends on what its run reads of the package, and on nothing else in it."""

from pathlib import Path

import pytest

from mllm_lit.studies.identity import facts, package_data
from tests.conftest import REPOSITORY


def read(*words: str) -> set[str]:
    files = package_data(facts(["--config", "configs/scienceqa_lora.yaml", *words])["settings"])
    return {f"{file.parent.name}/{file.name}" for file in files}


def test_what_a_run_reads_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(REPOSITORY)
    plain = read()
    sources = {"embedded/coco_captions.zip", "embedded/vqav2.zip", "embedded/gqa.zip"}
    assert {name for name in plain if name.endswith(".zip")} == sources | {"embedded/scienceqa.zip"}
    assert {"embedded/model.safetensors", "embedded/tokenizer.json", "embedded/chat_template.jinja"} <= plain
    assert not {name for name in plain if name.endswith((".md", ".html", "scores.json"))}
    pope = read("--data", "configs/tasks/pope.yaml", "--data.sources", "null")
    assert {name for name in pope if name.endswith(".zip")} == {"embedded/pope.zip", "embedded/coco_captions.zip"}
    assert read("--data.root", str(tmp_path)) == plain - {"embedded/scienceqa.zip"}, "a release in place of it"
    other = read("--model.backbone", "configs/backbones/smolvlm_256m.yaml")
    assert other == sources | {"embedded/scienceqa.zip"}, "another model"
