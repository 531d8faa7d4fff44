"""Checkpoint files: written whole, refused when they are not, and what `last` means."""

import errno
import os
import pickle
import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from mllm_lit.callbacks import TrainableCheckpoint
from mllm_lit.callbacks.checkpoint import AtomicCheckpointIO, CheckpointError, by_age, fault
from mllm_lit.run_directory import RunDirectoryError, find_last, refuse_existing
from tests.test_module import data, module, trainer, weights

STATE = {"state_dict": {"w": torch.arange(1000.0)}, "global_step": 3, "mllm_lit": {}}


def save(path: Path, age: int, state: Any = STATE) -> Path:
    AtomicCheckpointIO().save_checkpoint(state, path)
    os.utime(path, ns=(10**18 - age, 10**18 - age))
    return path


def test_a_file_comes_back_and_nothing_else_is_left(tmp_path: Path) -> None:
    path = save(tmp_path / "new" / "a.ckpt", 0)
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    assert torch.equal(loaded["state_dict"]["w"], STATE["state_dict"]["w"])  # type: ignore[index]
    assert [other.name for other in path.parent.iterdir()] == ["a.ckpt"]


def test_a_failed_write_leaves_the_file_before_it(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 0)
    with pytest.raises(Exception, match="pickle"):
        AtomicCheckpointIO().save_checkpoint({**STATE, "x": (i for i in range(3))}, path)
    assert fault(path) is None


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped"])
def test_a_damaged_file_is_refused_by_name_and_the_one_before_is_offered(tmp_path: Path, damage: str) -> None:
    save(tmp_path / "step=1.ckpt", 30)
    good = save(tmp_path / "step=2.ckpt", 20)
    new = save(tmp_path / "step=3.ckpt", 10)
    content = bytearray(new.read_bytes())
    content[len(content) // 2] ^= 1
    new.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "flipped": content}[damage])
    with pytest.raises(CheckpointError) as error:
        AtomicCheckpointIO().load_checkpoint(new)
    assert str(new) in str(error.value)
    assert f"Resume with --ckpt_path {good}" in str(error.value)
    good.write_bytes(b"PK")
    (tmp_path / "step=1.ckpt").unlink()
    with pytest.raises(CheckpointError, match="No other checkpoint"):
        AtomicCheckpointIO().load_checkpoint(new)


def test_a_missing_file_is_answered_with_what_is_there(tmp_path: Path) -> None:
    there = save(tmp_path / "step=2.ckpt", 0)
    with pytest.raises(CheckpointError, match=f"There is no checkpoint .*step=9.ckpt. In that folder: {there}"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "step=9.ckpt")


def test_last_is_the_newest_run_that_has_a_checkpoint(tmp_path: Path) -> None:
    assert find_last(tmp_path, None) == (None, None)
    assert find_last(tmp_path, "new") == ("new", None)
    for age, version in ((20, "version_0"), (10, "mine")):
        folder = tmp_path / version
        folder.mkdir()
        (folder / "config.yaml").touch()
        os.utime(folder / "config.yaml", ns=(10**18 - age, 10**18 - age))
    assert find_last(tmp_path, None) == ("mine", None)
    older = save(tmp_path / "version_0" / "checkpoints" / "step=20.ckpt", 5)
    newer = save(tmp_path / "version_0" / "checkpoints" / "step=4.ckpt", 1)
    os.link(newer, newer.with_name("last.ckpt"))
    assert find_last(tmp_path, None) == ("version_0", newer)
    assert find_last(tmp_path, "mine") == ("mine", None)
    assert find_last(tmp_path, "version_0") == ("version_0", newer)
    assert [path.name for path in by_age(older.parent)] == ["step=4.ckpt", "last.ckpt", "step=20.ckpt"]


def test_a_taken_directory_is_refused_unless_it_is_resumed(tmp_path: Path) -> None:
    path = save(tmp_path / "mine" / "checkpoints" / "step=2.ckpt", 0)
    refuse_existing(tmp_path, "other")
    refuse_existing(tmp_path, "mine", path)
    for checkpoint in (None, tmp_path / "elsewhere.ckpt"):
        with pytest.raises(RunDirectoryError, match="--ckpt_path last"):
            refuse_existing(tmp_path, "mine", checkpoint)


@pytest.mark.parametrize(("keep", "expected"), [(1, [6]), (2, [4, 6]), (-1, [2, 4, 6])])
def test_the_newest_are_kept_and_each_is_complete(
    keep: int, expected: list[int], tiny_folder: Path, tmp_path: Path
) -> None:
    model, callback = module(tiny_folder), TrainableCheckpoint(every_n_train_steps=2, keep=keep)
    trainer(tmp_path, callbacks=[callback]).fit(model, datamodule=data(tmp_path))
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", *(f"step={step}.ckpt" for step in expected)}
    for step in expected:
        stored = torch.load(tmp_path / "checkpoints" / f"step={step}.ckpt", weights_only=True)
        assert {name.removeprefix("net.") for name in stored["state_dict"]} == set(weights(model))
        assert any("multi_modal_projector" in name for name in stored["state_dict"]), "the connector is in it"
        assert len(stored["optimizer_states"][0]["state"]) == len(weights(model))
        assert stored["lr_schedulers"][0]["last_epoch"] == step
        position = {"epoch": int(step == 6), "batches": step % 6, "seed": 42, "rows": 22}
        assert stored["MLLMDataModule"].items() >= position.items()
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    for name, tensor in weights(model).items():
        assert torch.equal(last["state_dict"][f"net.{name}"], tensor)


@pytest.mark.parametrize("wrong", [{"every_n_train_steps": 0}, {"keep": 0}, {"keep": -2}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected a finite number at least 1"):
        TrainableCheckpoint(**wrong)


def test_last_names_the_newest_after_a_kill_between_the_two(tmp_path: Path) -> None:
    callback = TrainableCheckpoint()
    callback.folder = tmp_path
    old = save(tmp_path / "step=2.ckpt", 20)
    os.link(old, tmp_path / "last.ckpt")
    new = save(tmp_path / "step=4.ckpt", 10)
    callback._repair_last()
    assert (tmp_path / "last.ckpt").samefile(new)
    newest = save(tmp_path / "step=6.ckpt", 0)
    newest.write_bytes(b"PK")
    callback._repair_last()
    assert (tmp_path / "last.ckpt").samefile(new)


class Code:
    """What a pickle could run."""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}, "pytorch-lightning_version": "2"}, r"not written by mllm_lit \(it holds \['pytorch-light"),
        ([1, 2], r"not written by mllm_lit \(it holds list"),
        ({"model": Code()}, "nothing in it was run"),
    ],
)
def test_a_file_of_others_is_refused_and_not_run(content: Any, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=f"other.ckpt was {message}|{message}"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "other.ckpt")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "old.ckpt").write_bytes(pickle.dumps({"w": 1}))
    with pytest.raises(CheckpointError, match="old.ckpt is truncated or corrupt"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "old.ckpt")


def test_loading_takes_no_memory_for_the_tensors(tmp_path: Path) -> None:
    path = save(tmp_path / "a.ckpt", 0, {**STATE, "state_dict": {"w": torch.zeros(50_000_000)}})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    loaded = AtomicCheckpointIO().load_checkpoint(path)
    # 200 MB of tensor: checked piece by piece, then mapped.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 50_000_000
    assert loaded["state_dict"]["w"].numel() == 50_000_000


@pytest.mark.parametrize("where", ["state_dict", "optimizer_states"])
def test_what_is_not_finite_is_never_written(where: str, tmp_path: Path) -> None:
    good = save(tmp_path / "step=1.ckpt", 10)
    state = dict(STATE)
    bad = torch.tensor([1.0, float("nan")])
    state[where] = {"w": bad} if where == "state_dict" else [{"state": {0: {"exp_avg": bad}}}]
    with pytest.raises(CheckpointError, match=rf"step=2.ckpt was not written: 1 of its tensors.*{good} is safe"):
        AtomicCheckpointIO().save_checkpoint(state, tmp_path / "step=2.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["step=1.ckpt"]


@pytest.mark.parametrize("how", ["full", "torch's words", "read-only"])
def test_a_disk_that_takes_no_more_is_named_and_leaves_what_was_there(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = save(tmp_path / "step=1.ckpt", 10)

    def fails(*_: Any) -> None:
        if how == "torch's words":
            raise RuntimeError("[enforce fail at inline_container.cc:858] . PytorchStreamWriter failed writing file")
        raise OSError(errno.ENOSPC if how == "full" else errno.EROFS, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(torch, "save", fails)
    message = rf"step=2.ckpt could not be written: .*It takes about 4,000 bytes, [\d,]+ are free. .*{good} is safe"
    with pytest.raises(CheckpointError, match=message):
        AtomicCheckpointIO().save_checkpoint(STATE, tmp_path / "step=2.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["step=1.ckpt"]
    assert fault(good) is None
