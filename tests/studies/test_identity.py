"""A cell depends on what its run reads of the package, and on nothing else in it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from mllm_lit.studies.identity import facts, package_data
from mllm_lit.studies.plan import cache_by_words, key_of
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


def test_a_seed_is_a_setting_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs that differ in it alone, one is read; what is told of the others is what they would be read as."""
    monkeypatch.chdir(REPOSITORY)
    asked: list[Sequence[str]] = []

    def counted(words: Sequence[str]) -> Mapping[str, Any]:
        asked.append(words)
        return facts(words)

    told = cache_by_words(counted)
    for seed in ("42", "0", "1", "4294967295"):
        words = ["--config", "configs/scienceqa_lora.yaml", "--seed_everything", seed, "--data.max_samples", "8"]
        assert told(words) == facts(words)
        assert key_of(told(words)) == key_of(facts(words))
    assert len(asked) == 1
    assert told([*words[:3], "010", *words[4:]]) == facts([*words[:3], "010", *words[4:]])  # 8, as YAML reads it
    with pytest.raises(SystemExit):
        told([*words[:3], "many", *words[4:]])
