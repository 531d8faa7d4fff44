"""Features of a frozen vision encoder: the same numbers with the cache, each picture encoded once, within the limit."""

import errno
import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mllm_lit.adapters import Adapter, Full, LoRA
from mllm_lit.backbones import Backbone, VisionCache
from mllm_lit.backbones.callback import BackboneCallback, pictures_change
from mllm_lit.backbones.pictures import VisionCacheError
from mllm_lit.backbones.pictures.file import FeatureFile
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.data.collate import Collate
from mllm_lit.module import MLLMModule
from tests.processors.beds import BEDS, build, loaded
from tests.processors.test_models import ASK, BLUE, RED
from tests.test_module import data, trainer
from tests.toy import Toy

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_thread")]
PICTURES = 6  # colours of the toy's squares
CACHEABLE = {
    *(
        "llava",
        "llava_vicuna",
        "vipllava",
        "llava_next",
        "llava_onevision",
        "idefics3",
        "idefics3_untiled",
        "smolvlm",
        "smolvlm2",
    ),
    *("internvl3", "internvl3_untiled", "paligemma2", "gemma3"),
}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads split a product by its rows, so that a picture's rounding depends on the rest of its batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Losses(L.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def fit(
    folder: Path, root: Path, cache: VisionCache | None, adapter: Adapter | None = None, rows: Any = None
) -> tuple[MLLMModule, list[float], list[int]]:
    """Two epochs between two evaluations: module, losses, and how many pictures each call of the encoder got."""
    shutil.rmtree(root / "predictions", ignore_errors=True)  # or the answers of the fit before would serve
    adapter = adapter or LoRA(rank=4, alpha=8, dropout=0.1, lr=1e-2, connector_lr=1e-3)
    module = MLLMModule(Backbone(str(folder), dtype="float32"), adapter, vision_cache=cache)
    module.configure_model()
    assert module.loaded is not None
    calls: list[int] = []
    tower = module.loaded.model.get_submodule(module.loaded.layout.vision[0])
    embed = tower.get_submodule("embeddings")
    embed.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    losses, forgetting = Losses(), ForgettingCallback()
    callbacks = [BackboneCallback(), forgetting, losses]
    trainer(root, max_epochs=2, callbacks=callbacks).fit(module, datamodule=rows or data(root, sources=True))
    assert forgetting.after is not None
    evaluated = [value for scores in (forgetting.before, forgetting.after) for value in (scores or {})["toy"].values()]
    return module, losses.values + evaluated, calls


def test_losses_on_two_threads_are_the_same_up_to_rounding(tiny_folder: Path, tmp_path: Path) -> None:
    torch.set_num_threads(2)
    _, losses, _ = fit(tiny_folder, tmp_path, None)
    _, kept, _ = fit(tiny_folder, tmp_path, VisionCache(0.01))
    assert kept == pytest.approx(losses, rel=1e-4)


@pytest.mark.parametrize("where", ["memory", "file"])
def test_losses_are_the_same_and_each_picture_is_encoded_once(tiny_folder: Path, tmp_path: Path, where: str) -> None:
    plain, losses, without = fit(tiny_folder, tmp_path, None)
    cache = VisionCache(0.01, tmp_path / "features" if where == "file" else None)
    cached, again, calls = fit(tiny_folder, tmp_path, cache)
    assert again == losses, "bit for bit"
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(plain.trainable(), cached.trainable(), strict=True))
    assert cache.encoded == PICTURES
    assert sum(calls) == PICTURES + 1, "one picture is encoded alone, too, to see if that changes it"
    assert cache.looked_up == sum(without) > 5 * PICTURES
    if where == "file":
        (index,) = (tmp_path / "features").glob("*.txt")
        with index.open("a") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            beside = VisionCache(0.01, tmp_path / "features")
            _, again, _ = fit(tiny_folder, tmp_path, beside)
        assert again == losses
        assert beside.encoded == PICTURES, "another run has the file open, so this one begins its own"
        _, again, calls = fit(tiny_folder, tmp_path, VisionCache(0.01, tmp_path / "features"))
        assert again == losses
        assert sum(calls) == 0, "the next run finds them all in the file"
        assert len(list((tmp_path / "features").glob("*.bin"))) == 2
        torch.set_num_threads(2)
        _, _, calls = fit(tiny_folder, tmp_path, VisionCache(0.01, tmp_path / "features"))
        assert sum(calls) == PICTURES, "more threads round otherwise"


def test_the_limit_holds_and_changes_no_loss(tiny_folder: Path, tmp_path: Path) -> None:
    _, losses, without = fit(tiny_folder, tmp_path, None)
    row = 5 * 32 * 4  # class token and 2 x 2 patches, 32 floats each
    cache = VisionCache(3.5 * row / 1e9)
    with pytest.warns(UserWarning, match="full with 3 pictures"):
        _, again, calls = fit(tiny_folder, tmp_path, cache)
    assert again == losses
    assert cache.bytes == 3 * row <= cache.limit
    assert PICTURES < sum(calls) < sum(without)


@pytest.mark.parametrize(
    "adapter", [Full(blocks=1, vision_from=0, connector="frozen"), LoRA(rank=2, vision="lora")], ids=["full", "lora"]
)
def test_a_trained_encoder_switches_it_off(tiny_folder: Path, tmp_path: Path, adapter: Adapter) -> None:
    cache = VisionCache()
    with pytest.warns(UserWarning, match="vision encoder is trained.*off"):
        fit(tiny_folder, tmp_path, cache, adapter)
    assert cache.looked_up == 0


class Flipping(Collate):
    """Turns pixels around at random, as augmentation does."""

    def __call__(self, samples: Any) -> Any:
        batch = super().__call__(samples)
        if "pixel_values" in batch.inputs and torch.rand(()) < 0.5:
            batch.inputs["pixel_values"] = batch.inputs["pixel_values"].flip(-1) + 0.1
        return batch


def test_augmentation_switches_it_off(tiny_folder: Path, tmp_path: Path) -> None:
    rows = data(tmp_path, sources=True)
    processor = Backbone(str(tiny_folder)).load().processor
    samples = Toy().rows(tmp_path, "train")[:3]
    before = torch.random.get_rng_state()
    assert pictures_change(Flipping(processor), samples)
    assert not pictures_change(Collate(processor), samples)
    assert torch.equal(torch.random.get_rng_state(), before)
    rows.setup("fit")
    build_loader = rows.train_dataloader

    def augmented() -> Any:
        loader = build_loader()
        loader.collate_fn = Flipping(processor)
        return loader

    rows.train_dataloader = augmented  # type: ignore[method-assign]
    cache = VisionCache()
    with pytest.warns(UserWarning, match="augmented.*off"):
        fit(tiny_folder, tmp_path, cache, rows=rows)
    assert cache.looked_up == 0
    assert cache.bytes == 0


@pytest.mark.parametrize("name", BEDS)
def test_every_family_is_cached_exactly_or_refused(name: str) -> None:
    made = build(name)
    batches = [made.inputs([f"{ASK} {ASK}"], pictures) for pictures in ([RED, BLUE], [BLUE, RED], [RED, RED])]
    with torch.no_grad():
        expected = [made.model(**batch).logits for batch in batches]
    cache = VisionCache()
    if name not in CACHEABLE:
        with pytest.raises(VisionCacheError, match="inside the vision module|told apart"):
            _ = cache.attach(loaded(made), set()) and made.model(**batches[0])
        return
    assert cache.attach(loaded(made), set())
    for grad in (torch.inference_mode, torch.enable_grad):
        with grad():
            for batch, logits in zip(batches, expected, strict=True):
                torch.testing.assert_close(made.model(**batch).logits, logits, rtol=0, atol=0)
    tiles = cache.encoded
    assert cache.looked_up >= 3 * tiles
    cache.detach("Done.")
    assert torch.equal(made.model(**batches[0]).logits, expected[0])
    assert cache.encoded == tiles


FILL = """
import sys, torch
from pathlib import Path
from mllm_lit.backbones.pictures import VisionCacheError
from mllm_lit.backbones.pictures.file import FeatureFile
file, kept = FeatureFile(Path(sys.argv[1]) / "full", 10**9), []
try:
    while True:
        kept.append(file.append(len(kept).to_bytes(4, "big"), [torch.ones(1 << 16)], (0, None)))
except VisionCacheError as error:
    again = [view.sum().item() for row in kept for view in row]
    assert again == [float(1 << 16)] * len(kept), "what was kept stays readable"
    sys.exit(f"{len(kept)} rows, then {error}")
"""


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = f"mount -t tmpfs -o size=2m none {disk}"
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    if shutil.which("unshare") is None or subprocess.run([*alone, mounted], capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    fill = f'{mounted}; exec "{sys.executable}" -c "$0" {disk}'
    done = subprocess.run([*alone, fill, FILL], capture_output=True, text=True)
    assert done.returncode == 1, f"{done.returncode}: {done.stderr}"
    assert re.search(r"^[67] rows, then vision_cache: .*full.bin cannot grow .*No space left", done.stderr), done.stderr


def test_what_the_disk_refuses_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(file: int, offset: int, length: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    file = FeatureFile(tmp_path / "a", 10**6)
    with pytest.raises(VisionCacheError, match=r"a\.bin cannot grow beyond 0 bytes: No space left on device"):
        file.append(b"key", [torch.ones(4)], (0, None))
    assert not file.rows


@pytest.mark.parametrize("cut", [1, 8, 20])
def test_a_line_cut_short_by_a_kill_costs_its_row_alone(tmp_path: Path, cut: int) -> None:
    rows = [torch.full((3,), float(i)) for i in range(3)]
    for i in range(2):
        FeatureFile(tmp_path / "a", 10**6).append(bytes([i]) * 4, [rows[i]], (0, None))
    index = tmp_path / "a.txt"
    index.write_bytes(index.read_bytes()[:-cut])
    file = FeatureFile(tmp_path / "a", 10**6)
    assert list(file.rows) == [bytes(4)]
    file.append(bytes([2]) * 4, [rows[2]], (0, None))
    del file
    again = FeatureFile(tmp_path / "a", 10**6)
    assert list(again.rows) == [bytes(4), bytes([2]) * 4]
    assert all(torch.equal(kept[0], rows[key[0]]) for key, kept in again.rows.items())
