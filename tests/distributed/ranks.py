"""Two processes that train together, started by a fork server that imports everything once."""

import os
import socket
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, Strategy

from mllm_lit.adapters import Adapter, Bottleneck, Full, LoRA
from mllm_lit.backbones import Backbone
from mllm_lit.backbones.pictures import VisionCache
from mllm_lit.callbacks import TrainableCheckpoint
from mllm_lit.callbacks.forgetting import ForgettingCallback
from mllm_lit.datamodule import Source, Sources, VQADataModule
from mllm_lit.importance import EWC, L2SP, ChildTuningD, GradientTopK, LoRASculpt, ModelDowser, Rule, Spider
from mllm_lit.module import MLLMModule
from mllm_lit.objectives import FLOW, STM, TALR, ForgettingBudget, KLToBase, Objective
from mllm_lit.rehearsal import Rehearse
from mllm_lit.strategies import FSDP2Strategy, ZeROStrategy
from tests.checkpoints.process import SERVER
from tests.toy import ROWS, Album, Toy, ToySource

RANKS = 2
ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "lora": lambda: LoRA(rank=4, alpha=8, dropout=0.0, lr=1e-2, connector_lr=1e-3),
    "bottleneck": lambda: Bottleneck(size=8, dropout=0.0, lr=5e-2, connector_lr=1e-2),
    "full": lambda: Full(lr=1e-3, connector_lr=1e-3),
    "connector": lambda: Full(blocks=0, connector_lr=3e-2),
}
BEGUN: dict[str, Callable[[], Adapter]] = {
    init: partial(LoRA, 4, 8, 0.0, lr=1e-2, connector_lr=1e-3, init=init, init_rows=9)
    for init in ("corda", "lora_null")
}
"""Begin from what layers read, which FSDP2 refuses."""
RULES: dict[str, Callable[[], Rule]] = {
    "spider": Spider,
    "gradient_topk": lambda: GradientTopK(trained=0.2),
    "gradient_topk_row": lambda: GradientTopK(trained=0.1, scope="row"),
    "child_tuning_d": lambda: ChildTuningD(batches=4),
    "l2sp": lambda: L2SP(0.1),
    "l2sp_base": lambda: L2SP(0.1, reference="base"),
    "ewc": lambda: EWC(rows=4),
    "ewc_generated": lambda: EWC(rows=4, fisher="generated"),
    "dowser": lambda: ModelDowser(prompts=4, probes=2, batch=2, length=12),
    "lora_sculpt": lambda: LoRASculpt(prune_at=3),
}
"""Those that look at gradients, at data or at the model; the others are tried in tests/importance/test_sharded.py."""


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "kl": lambda: KLToBase(5.0, top_k=20),
    "flow": FLOW,
    "talr": TALR,
    "stm": lambda: STM(threshold=524.0),
    "budget": lambda: ForgettingBudget(0.01, every=2),
}


class Trace(L.Callback):
    """The logged loss of every optimizer step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step > len(self.losses):
            self.losses.append(float(trainer.callback_metrics["train/loss"]))


def strategy(name: str, ranks: int) -> Strategy | str:
    environment = [LightningEnvironment()] if ranks > 1 else []
    if name == "fsdp2":
        made: Strategy = FSDP2Strategy(process_group_backend="gloo")
    elif name == "zero2":
        made = ZeROStrategy()
    elif name in ("ddp", "plain"):
        looks = {"find_unused_parameters": True} if name == "ddp" else {}
        made = DDPStrategy(process_group_backend="gloo", **looks)  # type: ignore[arg-type]
    else:
        return "auto"
    made.cluster_environment = environment[0]  # type: ignore[attr-defined]
    return made


def fit(
    backbone: Path,
    data: Path,
    folder: Path,
    adapter: str,
    name: str = "one",
    ranks: int = 1,
    resume: Path | None = None,
    score: bool = False,
    steps: int = -1,
    rule: str | None = None,
    objective: str | None = None,
    keep: Path | None = None,
    cache: bool = False,
    album: dict[str, Any] | None = None,
    **start: Any,
) -> dict[str, Any]:
    """Train two rows a step (one on each of two ranks, so that a rank often has no picture), and report.

    With ``album``, settings of the data, the rows are of :class:`Album` and an epoch of three is a step.
    """
    os.environ["PL_GLOBAL_SEED"] = "42"
    trace, forgetting = Trace(), ForgettingCallback(keep)
    keep = TrainableCheckpoint(every_n_train_steps=4)
    scoring = [forgetting] if score else []
    trainer = L.Trainer(
        accelerator="cpu",
        devices=ranks,
        strategy=strategy(name, ranks),
        max_epochs=1 if album is None else 3,
        accumulate_grad_batches=1 if album is None else 1000,
        max_steps=steps,
        callbacks=[trace, keep, *scoring],
        logger=False,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        gradient_clip_val=1.0,
        use_distributed_sampler=False,
        default_root_dir=folder,
    )
    importance = None if rule is None else RULES[rule]()
    if importance is not None:
        importance.batch_size = importance.batch_size or 2  # else that of one rank, and so other first batches
    kept = VisionCache() if cache else None
    start |= {} if objective is None else {"objective": OBJECTIVES[objective]()}
    model = MLLMModule(
        Backbone(path=str(backbone), dtype="float32"),
        (ADAPTERS | BEGUN)[adapter](),
        importance,
        vision_cache=kept,
        **start,
    )
    sources = None if rule is None and album is None else Sources({"source": Source(ToySource(), data)})
    task, settings = (Toy(), {"batch_size": 2 // ranks}) if album is None else (Album(), album)
    # Of five, looked at by twos or one by one on each rank, one rank has none left at last.
    rehearse = Rehearse(0.5, held_out=5) if objective == "budget" else None
    rows = VQADataModule(task, data, sources, rehearse=rehearse, **settings)
    trainer.fit(model, datamodule=rows, ckpt_path=None if resume is None else str(resume))
    assert model.net is not None
    model.adapter.save(model.net, folder / "adapter", is_main=trainer.is_global_zero)
    assert kept is None or 0 < kept.encoded < kept.looked_up, "some pictures are seen again"
    strength = getattr(model.objective, "strength", None)
    return {"losses": trace.losses, "before": forgetting.before, "after": forgetting.after, "strength": strength}


def drawn(folder: Path) -> Path:
    """A folder with all pictures: ranks that draw one at the same time may read half of it."""
    folder.mkdir()
    for split in ROWS:
        Toy().rows(folder, split)
    return folder


def rank(index: int, port: int, out: Path, jobs: list[dict[str, Any]]) -> None:
    """What one process does: the jobs, in order."""
    # As torchrun would set them; gloo needs no more.
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(index), "NODE_RANK": "0"}
    torch.set_num_threads(1)
    try:
        results = [fit(**job, ranks=RANKS) for job in jobs]
        torch.save(results, out / f"rank{index}.pt")
    except BaseException:
        (out / f"error{index}.txt").write_text(traceback.format_exc())
        raise


def together(out: Path, jobs: list[dict[str, Any]], limit: float = 240) -> list[dict[str, Any]]:
    """Run jobs on two ranks, and give what rank 0 reports."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [SERVER.Process(target=rank, args=(i, port, out, jobs)) for i in range(RANKS)]  # type: ignore[attr-defined]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(limit)
    hung = [process for process in ranks if process.is_alive()]
    for process in hung:
        process.kill()
    errors = "\n".join(path.read_text() for path in sorted(out.glob("error*.txt")))
    assert not hung, f"{len(hung)} ranks hang\n{errors}"
    assert not errors, errors
    loaded: list[dict[str, Any]] = torch.load(out / "rank0.pt", weights_only=True)
    return loaded
