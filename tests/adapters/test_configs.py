"""Every YAML of an adapter: it parses, it attaches, and a misspelt key is named."""

from pathlib import Path

import pytest
from jsonargparse import ArgumentParser

import mllm_lit.adapters
from mllm_lit.adapters import Adapter, LoRA
from tests.adapters.test_contract import backbone
from tests.conftest import REPOSITORY
from tests.processors.beds import build

FOLDER = REPOSITORY / "configs" / "adapters"
# What makes the study's sizes fit a model of width 32.
SMALL = {
    "osf": [],  # of half the rank that a weight has
    "LoRA": ["--adapter.rank=2"],
    "Bottleneck": ["--adapter.size=4"],
    "Prefix": ["--adapter.tokens=3"],
    "Prompt": ["--adapter.tokens=3"],
    "Peft": ["--adapter.options.r=4"],
    "Full": ["--adapter.weight_decay=0.1"],
    "IA3": ["--adapter.weight_decay=0.1"],
}


def parse(file: Path, *more: str) -> Adapter:
    """What the command line makes of ``--adapter FILE``."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Adapter, "adapter", required=True)
    arguments = parser.parse_args([f"--adapter={file}", *more])
    adapter: Adapter = parser.instantiate_classes(arguments).adapter
    return adapter


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_becomes_an_adapter_that_attaches(file: Path) -> None:
    adapter = parse(file)
    assert type(adapter).__name__ in mllm_lit.adapters.__all__
    small = parse(file, *SMALL.get(file.stem, SMALL[type(adapter).__name__]))
    module = small.attach(backbone(build("llava")))
    assert any(p.requires_grad for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "kind"),
    [("lora", "LoRA"), ("bottleneck", "Bottleneck"), ("ia3", "IA3"), ("prefix", "Prefix"), ("full", "Full")],
)
def test_the_files_of_the_study_hold_the_defaults(name: str, kind: str) -> None:
    default = getattr(mllm_lit.adapters, kind)()
    assert vars(parse(FOLDER / f"{name}.yaml")) == vars(default)


def test_values_are_overridden_and_misspelt_keys_named() -> None:
    adapter = parse(FOLDER / "lora.yaml", "--adapter.rank=4", "--adapter.connector=frozen", "--adapter.blocks=[0, 1]")
    assert isinstance(adapter, LoRA)
    assert (adapter.rank, adapter.alpha, adapter.connector, adapter.blocks) == (4, 256, "frozen", [0, 1])
    with pytest.raises(Exception, match="rnak"):
        parse(FOLDER / "lora.yaml", "--adapter.rnak=4")
