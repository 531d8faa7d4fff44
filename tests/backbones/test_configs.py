"""Every YAML of a backbone: it parses without network or torch, and names a config class that exists."""

import json
import re
from pathlib import Path

import pytest
import transformers
from jsonargparse import ArgumentParser
from transformers import AutoModelForImageTextToText

from mllm_lit.backbones import Backbone, OriginalBackbone
from tests.conftest import REPOSITORY

FILES = sorted((REPOSITORY / "configs" / "backbones").glob("*.yaml"))
PUBLISHED = [file for file in FILES if not file.stem.startswith(("embedded", "smollm2"))]
NAMED = {
    *("embedded", "embedded_parts", "smollm2_parts", "smollm2_llava"),
    *("llava15_7b", "llava15_13b", "sharegpt4v_7b", "vila15_3b", "nvila_lite_2b"),
    *("qwen2_vl_2b", "qwen2_vl_7b", "qwen25_vl_3b", "qwen25_vl_7b", "qwen3_vl"),
    *("llava_onevision_0.5b", "llava_onevision_7b", "smolvlm_256m", "smolvlm_500m", "smolvlm_2b"),
    *("internvl3_1b", "paligemma2_3b", "clip_vicuna_7b"),
}


def parse(file: Path) -> Backbone:
    """What the command line makes of ``--backbone FILE``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Backbone, "backbone", required=True)
    backbone: Backbone = parser.instantiate_classes(parser.parse_args([f"--backbone={file}"])).backbone
    return backbone


def test_the_files_are_those_promised() -> None:
    assert {file.stem for file in FILES} == NAMED


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_becomes_a_backbone(file: Path) -> None:
    backbone = parse(file)
    assert backbone.path
    assert not backbone.trust_remote_code
    assert backbone.dtype == "auto"


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_every_file_says_what_it_is(file: Path) -> None:
    text = file.read_text()
    for word in ("Tuned", "Pictures:", "Memory:"):
        assert word in text, f"{file.name} says nothing of {word}"
    named = re.search(r"transformers' (\w+Config)", text)
    assert named is not None
    config = getattr(transformers, named[1])()
    assert type(config) in AutoModelForImageTextToText._model_mapping


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_options_are_those_of_the_family(file: Path) -> None:
    backbone = parse(file)
    assert isinstance(backbone, OriginalBackbone) == (file.stem in {"sharegpt4v_7b", "vila15_3b", "nvila_lite_2b"})
    assert backbone.max_length is not None
    assert backbone.max_length >= 1024


@pytest.mark.parametrize("file", PUBLISHED, ids=lambda file: file.stem)
def test_the_memory_is_the_computed_one(file: Path) -> None:
    results = REPOSITORY / "benchmarks" / "results" / "backbone_memory.json"
    counts = json.loads(results.read_text())["backbones"][file.stem]
    assert f"Memory: {counts['bf16_bytes'] / 1e9:.1f} GB of bf16 weights" in file.read_text()
    assert counts["total"] == counts["vision"] + counts["connector"] + counts["llm"]
