"""Revisions and code from the hub reach every part of every backbone, against a hub cache as it lies on disk."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants

from mllm_lit.backbones import Backbone, BackboneError, ComposedBackbone, OriginalBackbone
from tests.backbones.parts import save_llm, save_vision
from tests.backbones.test_original import save_llava, save_vila

Cache = Callable[[str, Path, str], str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    """Puts a folder into the hub's cache as one revision of an id, the only one there is."""
    root = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def put(name: str, folder: Path, revision: str) -> str:
        place = root / f"models--{name.replace('/', '--')}"
        (place / "refs").mkdir(parents=True)
        commit = "0123456789abcdef0123456789abcdef01234567"
        (place / "refs" / revision).write_text(commit)
        shutil.copytree(folder, place / "snapshots" / commit)
        return name

    return put


def test_each_part_has_a_revision_of_its_own(cache: Cache, tmp_path: Path) -> None:
    """Neither id has a main revision, so whatever is read without the one asked for is not found."""
    llm = cache("some/llm", save_llm("llama", tmp_path / "llm"), "v2")
    vision = cache("some/vision", save_vision("clip", tmp_path / "vision"), "v3")
    expected = ComposedBackbone(str(tmp_path / "vision"), str(tmp_path / "llm")).load()
    found = ComposedBackbone(f"{vision}@v3", f"{llm}@v2").load()
    for (name, one), (_, two) in zip(found.model.named_parameters(), expected.model.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    with pytest.raises(BackboneError, match="could not be fetched"):
        ComposedBackbone(vision, f"{llm}@v2").load()
    with pytest.raises(BackboneError, match="could not be fetched"):
        ComposedBackbone(f"{vision}@v3", llm).load()


def test_parts_come_out_of_a_revision_of_a_whole_model(cache: Cache, tiny_folder: Path) -> None:
    whole = cache("some/whole", tiny_folder, "v2")
    loaded = ComposedBackbone(f"{whole}@v2", f"{whole}@v2", template="own").load()
    assert loaded.layout.vision


def test_one_revision_of_two_sources_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"vision: a/b@v2 or llm: c/d@v2"):
        ComposedBackbone("a/b", "c/d", revision="v2")
    save_vision("clip", tmp_path / "clip@home")  # an @ may also be a folder's
    save_llm("llama", tmp_path / "llm")
    assert ComposedBackbone(str(tmp_path / "clip@home"), str(tmp_path / "llm")).load().layout.vision
    with pytest.raises(BackboneError, match="'v2' is of a hub id"):
        ComposedBackbone(str(tmp_path / "clip@home"), f"{tmp_path / 'llm'}@v2").load()


@pytest.mark.parametrize("form", ["llava", "vila"])
def test_an_original_checkpoint_has_a_revision(form: str, cache: Cache, tmp_path: Path) -> None:
    made = save_llava(tmp_path) if form == "llava" else save_vila(tmp_path)
    name = cache("some/original", made["folder"], "v2")
    vision = None
    if form == "llava":
        vision = cache("some/clip", tmp_path / "clip", "v3") + "@v3"
    loaded = OriginalBackbone(name, vision=vision, revision="v2").load()
    assert loaded.identity == OriginalBackbone(str(made["folder"])).load().identity
    with pytest.raises(BackboneError, match=r"'some/original' \(revision main\)"):
        OriginalBackbone(name, vision=vision).load()


def own_code(folder: Path, file: str, kind: str) -> None:
    """Let ``folder`` ask for code of its own, which ends the process when it runs."""
    content = json.loads((folder / file).read_text()) | {"auto_map": {kind: "code.Own"}}
    if kind == "AutoTokenizer":
        content |= {"auto_map": {kind: ["code.Own", None]}, "tokenizer_class": "Own"}
    else:
        content["model_type"] = "own"
    (folder / file).write_text(json.dumps(content))
    (folder / "code.py").write_text("raise SystemExit('the code was run')")


CODE = [
    ("composed", "llm", "config.json", "AutoConfig"),
    ("composed", "clip", "config.json", "AutoConfig"),
    ("composed", "llm", "tokenizer_config.json", "AutoTokenizer"),
    ("llava", "clip", "config.json", "AutoConfig"),
    ("vila", "vila/llm", "config.json", "AutoConfig"),
    ("vila", "vila/llm", "tokenizer_config.json", "AutoTokenizer"),
    ("vila", "vila/vision_tower", "config.json", "AutoConfig"),
]


@pytest.mark.parametrize(("form", "part", "file", "kind"), CODE, ids=lambda value: value.replace("/", "-"))
def test_code_of_a_part_is_run_where_the_user_says_so(
    form: str, part: str, file: str, kind: str, tmp_path: Path
) -> None:
    if form == "composed":
        save_llm("llama", tmp_path / "llm")
        save_vision("clip", tmp_path / "clip")
    else:
        (save_llava if form == "llava" else save_vila)(tmp_path)
    own_code(tmp_path / part, file, kind)

    def backbone(**options: Any) -> Backbone:
        if form == "composed":
            return ComposedBackbone(str(tmp_path / "clip"), str(tmp_path / "llm"), **options)
        return OriginalBackbone(str(tmp_path / form), **options)

    with pytest.raises(BackboneError, match="trust_remote_code"):
        backbone().load()
    with pytest.raises(SystemExit, match="the code was run"):
        backbone(trust_remote_code=True).load()


def test_an_llm_with_code_of_its_own_becomes_no_part(tmp_path: Path) -> None:
    save_vision("clip", tmp_path / "clip")
    folder = save_llm("llama", tmp_path / "llm")
    config = json.loads((folder / "config.json").read_text())
    auto = {"AutoConfig": "code.OwnConfig", "AutoModelForCausalLM": "code.Own"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": auto}))
    (folder / "code.py").write_text(
        "import transformers as hf\n"
        "class OwnConfig(hf.LlamaConfig):\n    model_type = 'own'\n"
        "class Own(hf.LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    with pytest.raises(BackboneError, match="an LLM with code of its own"):
        ComposedBackbone(str(tmp_path / "clip"), str(folder), trust_remote_code=True).load()
