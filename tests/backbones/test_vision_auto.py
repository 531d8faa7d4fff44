"""``vision_cache: auto``: on where pictures are seen again and fit, else off with a reason, and never an error."""

import errno
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mllm_lit.adapters import Full, LoRA
from mllm_lit.backbones import Backbone, VisionCache
from mllm_lit.backbones.pictures import auto, cache_if_it_pays, file, looks_at
from mllm_lit.cli import MLLMCLI
from mllm_lit.data.collate import Collate
from mllm_lit.module import MLLMModule
from tests.conftest import REPOSITORY
from tests.processors.beds import build, loaded
from tests.test_module import data, module, trainer
from tests.toy import COLOURS, ROWS, Toy


def rows(*shown: str) -> list[Any]:
    return [SimpleNamespace(images=tuple(one)) for one in shown]


@pytest.mark.parametrize(
    ("train", "epochs", "evaluated", "ranks", "pays"),
    [
        (rows("a", "b", "c"), 1, [], 1, False),
        (rows("a", "b", "c"), 0.5, [], 1, False),
        (rows("a", "b", "c"), 3, [], 1, True),
        (rows("a", "a", "c"), 1, [], 1, True),
        (rows("a", "b", "c"), 1, [(rows("d", "e"), 1)], 1, False),
        (rows("a", "b", "c"), 1, [(rows("d", "e"), 2)], 1, True),
        (rows("a", "b", "c"), 1, [(rows("d", "d", "d"), 1)], 1, False),
        (rows("", ""), 9, [], 1, False),
        (rows("a", "b", "c"), 2, [], 8, False),
        (rows("a", "b", "c"), 8, [], 8, True),
    ],
)
def test_what_counts_as_seen_again(
    train: list[Any], epochs: float, evaluated: list[Any], ranks: int, pays: bool
) -> None:
    assert looks_at(train, epochs, evaluated, ranks).pays is pays


def train(folder: Path, root: Path, adapter: Any = None, epochs: int = 2, **more: Any) -> MLLMModule:
    model = module(folder, adapter, **more)
    trainer(root, max_epochs=epochs).fit(model, datamodule=data(root))
    return model


def test_it_is_the_default_and_encodes_each_picture_once(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = train(tiny_folder, tmp_path)
    assert isinstance(model.vision_cache, VisionCache)
    assert model.vision_cache.encoded == len(COLOURS)
    pictures = sum(i % 5 != 4 for i in range(ROWS["train"]))
    told = rf"kept \(vision_cache: auto\): {pictures} pictures in about 0\.0 MB for {2 * pictures} looks"
    assert re.search(told, " ".join(capfd.readouterr().out.split()))


def test_pictures_that_are_seen_once_are_not_looked_up(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = train(tiny_folder, tmp_path, epochs=1)
    assert model.vision_cache == "auto"
    assert model.loaded is not None
    assert "forward" not in vars(model.loaded.model.get_submodule(model.loaded.layout.vision[0]))
    assert "too few to gain by it" in capfd.readouterr().out


def test_null_is_off(tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train(tiny_folder, tmp_path, vision_cache=None).vision_cache is None
    assert "Vision features" not in capfd.readouterr().out


@pytest.mark.parametrize("adapter", [Full(blocks=1, vision_from=0, connector="frozen"), LoRA(rank=2, vision="lora")])
def test_a_trained_encoder_is_a_reason_and_no_error(
    tiny_folder: Path, tmp_path: Path, adapter: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train(tiny_folder, tmp_path, adapter).vision_cache == "auto"
    assert "each time (vision_cache: auto): the vision encoder is trained." in capfd.readouterr().out


def test_what_does_not_fit_is_left_out(
    tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    feature = 5 * 32 * 4  # class token and 2 x 2 patches, 32 floats each
    monkeypatch.setattr(auto, "free_memory", lambda: int(10 * feature / auto.SHARE))
    model = train(tiny_folder, tmp_path)
    assert model.vision_cache == "auto"
    assert model.loaded is not None
    assert "forward" not in vars(model.loaded.model.get_submodule(model.loaded.layout.vision[0]))
    assert "18 pictures do not fit into 0.00 GB" in capfd.readouterr().out


def test_pictures_that_change_are_a_reason(tiny_folder: Path) -> None:
    backbone = Backbone(str(tiny_folder)).load()
    cache, told = cache_if_it_pays(backbone, (), auto.Looks(2, 9), lambda: False)
    assert cache is None
    assert "augmented" in told


def test_a_sharded_encoder_and_one_without_a_border_are_reasons(tiny_folder: Path) -> None:
    backbone = Backbone(str(tiny_folder)).load()
    tower = backbone.model.get_submodule(backbone.layout.vision[0])
    next(tower.parameters()).placements = ()  # type: ignore[attr-defined]
    cases = (
        (backbone, "sharded"),
        (loaded(build("qwen2_5_vl")), "inside the vision module"),
    )
    for one, why in cases:
        cache, told = cache_if_it_pays(one, (), auto.Looks(2, 9), lambda: True)
        assert cache is None
        assert why in told
        assert "Set vision_cache" not in told


def test_a_folder_without_locks_is_a_reason(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    backbone = Backbone(str(tiny_folder)).load()
    batch = Collate(backbone.processor)(Toy().rows(tmp_path, "train")[:2])

    def probe() -> bool:
        backbone.model(**batch.inputs)
        return True

    with monkeypatch.context() as patch:
        patch.setattr(file.fcntl, "flock", refuse)
        cache, told = cache_if_it_pays(backbone, (), auto.Looks(2, 9), probe, folder=tmp_path / "kept")
    assert cache is None
    assert "cannot be locked: No locks available" in told
    tower = type(backbone.model.get_submodule(backbone.layout.vision[0]))
    monkeypatch.delattr(sys.modules[tower.__module__], "__file__")  # as in a notebook
    cache, told = cache_if_it_pays(backbone, (), auto.Looks(2, 2), probe, folder=tmp_path / "kept")
    assert cache is not None, "other runs will look at them again"
    assert told.endswith(f"for 2 looks, in {tmp_path / 'kept'}.")


def test_free_memory_knows_the_control_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auto.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**9))
    assert 0 < auto.free_memory() <= 10**9


def test_a_pictures_features_do_not_depend_on_its_batch(tiny_folder: Path, tmp_path: Path) -> None:
    """Or a resumed run, which meets it in another batch, would differ; several threads split products by rows."""
    torch.set_num_threads(2)
    backbone = Backbone(str(tiny_folder), dtype="float32").load()
    tower: Any = backbone.model.get_submodule(backbone.layout.vision[0])
    pixels = torch.randn(7, 3, 32, 32)
    found = []
    for places in ([0, 1, 2, 3, 4, 5, 6], [3], [5, 3]):
        cache = VisionCache()
        cache.attach(backbone, ())
        with torch.no_grad():
            made = tower(pixel_values=pixels[places]).last_hidden_state
        found.append(made[places.index(3)])
        cache.release()
    assert all(torch.equal(found[0], one) for one in found)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "auto"),
        (["--model.vision_cache", "auto"], "auto"),
        (["--model.vision_cache", "null"], None),
        (["--model.vision_cache.gigabytes", "2"], 2_000_000_000),
        (["--model.vision_cache", "VisionCache", "--model.vision_cache.gigabytes", "1"], 1_000_000_000),
    ],
)
def test_forms_on_the_command_line(words: list[str], expected: Any) -> None:
    config = str(REPOSITORY / "configs" / "scienceqa_lora.yaml")
    found = MLLMCLI(["--config", config, "--trainer.fast_dev_run", "true", *words]).model.vision_cache
    assert (found.limit if isinstance(found, VisionCache) else found) == expected


def test_toy_has_the_pictures_these_tests_count(tmp_path: Path) -> None:
    assert len({row.images for row in Toy().rows(tmp_path, "train")} - {()}) == 18
