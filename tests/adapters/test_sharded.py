"""An adapter whose tensors FSDP2 has sharded over two processes begins where told, and is saved whole."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from mllm_lit.adapters import Adapter, Bottleneck, Full, LoRA
from tests.adapters.test_contract import backbone, inputs, learn, logits
from tests.processors.beds import build

pytestmark = pytest.mark.slow

CASES = {
    "lora": lambda: LoRA(rank=4, dropout=0.0),
    "mica": lambda: LoRA(rank=4, dropout=0.0, init="mica"),
    "bottleneck": lambda: Bottleneck(size=8, dropout=0.0),
    "full": lambda: Full(blocks=1),
}
RANKS = 2


def train(case: str, folder: Path, sharded: bool, is_main: bool = True) -> None:
    """A few steps, the same on every rank, and a saved adapter."""
    made = build("llava")
    batch = inputs(made)
    loaded = backbone(made)
    torch.manual_seed(0)
    adapter = CASES[case]()
    model = adapter.attach(loaded)
    model.eval()
    if sharded:
        from torch.distributed.fsdp import fully_shard

        for block in made.model.get_submodule(loaded.layout.blocks):
            fully_shard(block)
        fully_shard(model)
        assert all(type(p).__name__ == "DTensor" for p in model.parameters())
    began = {name: tensor.flip(0) for name, tensor in adapter.initial_state().items()}
    adapter.load_initial_state(model, began)
    learn(adapter, model, loaded, batch)
    adapter.save(model, folder, is_main=is_main)


def work(rank: int, root: str) -> None:
    """What each process does."""
    dist.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=RANKS)
    for case in CASES:
        train(case, Path(root) / case, sharded=True, is_main=rank == 0)
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_sharded_training_saves_what_one_process_saves(tmp_path: Path) -> None:
    other = mp.get_context("spawn").Process(target=work, args=(1, str(tmp_path)))
    other.start()
    work(0, str(tmp_path))
    other.join(300)
    assert other.exitcode == 0
    batch = inputs(build("llava"))
    for case in CASES:
        train(case, tmp_path / f"{case}_alone", sharded=False)
        found = [
            logits(Adapter.load(backbone(build("llava")), tmp_path / name), batch) for name in (case, f"{case}_alone")
        ]
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)
