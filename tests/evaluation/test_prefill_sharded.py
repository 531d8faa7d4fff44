"""Two processes with sharded weights and unlike batches answer as one process does, and neither waits for ever."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from PIL import Image

from mllm_lit.backbones import find_layout
from mllm_lit.data.collate import Collate
from mllm_lit.evaluation.prefill import SharedCollate, answers_from_shared_pictures
from tests.processors.beds import build
from tests.processors.test_data_path import sample

pytestmark = pytest.mark.slow
FAMILIES = ("llava", "qwen3_vl", "gemma3")


def work(rank: int, root: str) -> None:
    """What each process does: rows, pictures and lengths of answers are its own."""
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    files = [Path(root) / f"{colour}.png" for colour in ("red", "blue")]
    asked = [("what?", "red", files[:1]), ("and this, what is it?", "a blue one", files[:1]), ("?", "3", files)]
    rows = [sample(*row) for row in (asked if rank else asked[2:])]
    dist.init_process_group("gloo", init_method=f"file://{root}/init", rank=rank, world_size=2)
    for name in FAMILIES:
        b = build(name)
        collate, new = Collate(b.processor), 2 + 3 * rank
        batch = SharedCollate(collate)(rows)
        single = answers_from_shared_pictures(b.model, collate, batch, new)
        for block in b.model.get_submodule(str(find_layout(b.model).blocks)):
            fully_shard(block)
        fully_shard(b.model, reshard_after_forward=True)
        register_fsdp_forward_method(b.model, "generate")
        found = answers_from_shared_pictures(b.model, collate, batch, new, in_step=True)
        assert (found.texts, found.tokens) == (single.texts, single.tokens)
        assert found.nll == pytest.approx(single.nll, rel=1e-5)
        dist.barrier()
    dist.destroy_process_group()


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
def test_ranks_in_step_with_unlike_batches(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    for colour in ("red", "blue"):
        Image.new("RGB", (48, 32), colour).save(tmp_path / f"{colour}.png")
    other = mp.get_context("spawn").Process(target=work, args=(1, str(tmp_path)))
    other.start()
    work(0, str(tmp_path))
    other.join(120)
    assert other.exitcode == 0
