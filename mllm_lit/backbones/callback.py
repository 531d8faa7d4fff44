"""Says at the start of a run what each role of the backbone holds and trains, and looks after the vision cache."""

import math
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from rich.console import Console

from mllm_lit.backbones.pictures import VisionCache, cache_if_it_pays, looks_at
from mllm_lit.backbones.report import markdown, parameter_rows, terminal
from mllm_lit.loggers import log_table, log_text
from mllm_lit.run_directory import kept_folder

PROBED_ROWS = 4


class BackboneCallback(L.Callback):
    """Prints the table of parameters and the precision, and logs the table; stands first, ahead of what evaluates."""

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Report, and see to the vision cache."""
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        rows = parameter_rows(pl_module.net, pl_module.loaded.layout, groups)
        told = self._keep_features(trainer, pl_module)
        if trainer.is_global_zero:
            title = f"{type(pl_module.loaded.model).__name__} from {pl_module.loaded.source}"
            precision = f"precision: {trainer.precision} ({getattr(trainer, 'precision_reason', 'as set')})"
            console = Console()
            console.print(title, highlight=False, markup=False, soft_wrap=True)
            console.print(terminal(rows))
            console.print("\n".join(filter(None, (precision, told))), highlight=False, markup=False, soft_wrap=True)
        log_table(trainer, "parameters", markdown(rows), trainer.global_step)
        log_text(trainer, "vision_cache", told, trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Let further runs of this process have the file of features."""
        cache = pl_module.vision_cache
        if stage == "fit" and isinstance(cache, VisionCache) and cache.folder is not None:
            cache.release()

    def _keep_features(self, trainer: L.Trainer, module: Any) -> str:
        """Decide on a vision cache that was left to the run, and drop one that could never be of use."""
        cache = module.vision_cache
        if cache is None:
            return ""
        loader: Any = trainer.train_dataloader
        if cache != "auto":
            if pictures_change(loader.collate_fn, some_with_pictures(loader.dataset)):
                cache.detach("training pictures are augmented, so none is seen twice.")
            return ""

        def probe() -> bool:
            rows = some_with_pictures(loader.dataset) or some_with_pictures(
                sample for samples, _ in evaluated(trainer) for sample in samples
            )
            if pictures_change(loader.collate_fn, rows):
                return False
            batch = loader.collate_fn(rows).to(module.device)
            with isolate_rng(), torch.no_grad(), trainer.precision_plugin.forward_context():
                module.net(**batch.inputs, use_cache=False, logits_to_keep=1)
            return True

        roles = {module.loaded.layout.role_of(name) for name, _ in module.trainable()}
        rows = loader.dataset
        if getattr(loader.collate_fn, "share", False):  # all rows on a picture are in one step
            rows = {row.images: row for row in rows}.values()
        seen = looks_at(rows, epochs_of(trainer), evaluated(trainer), trainer.world_size)
        folder = kept_folder(trainer)
        place = None if folder is None else folder / "vision"
        kept, told = cache_if_it_pays(module.loaded, roles, seen, probe, trainer.num_devices, place)
        module.vision_cache = kept or "auto"
        return told


def some_with_pictures(rows: Iterable[Any]) -> list[Any]:
    """The first rows that have one."""
    return list(islice((row for row in rows if row.images), PROBED_ROWS))


def epochs_of(trainer: L.Trainer) -> float:
    """How often a run goes through its training rows."""
    batches = float(trainer.estimated_stepping_batches) * trainer.accumulate_grad_batches
    return batches / max(1.0, float(trainer.num_training_batches))


def evaluated(trainer: L.Trainer) -> list[tuple[list[Any], int]]:
    """The samples of every set that a run evaluates, and how often."""
    sets = getattr(getattr(trainer, "datamodule", None), "sets", {})
    twice = any(getattr(callback, "scores_before_and_after", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]
    # A limit in batches leaves next to nothing of a set.
    times = {"test": 2 * int(twice and isinstance(trainer.limit_test_batches, float))}
    times["val"] = validations(trainer) if isinstance(trainer.limit_val_batches, float) else 0
    return [(one.samples, times.get(phase, 0)) for phase, ones in sets.items() for one in ones]


def validations(trainer: L.Trainer) -> int:
    """How many there are in a run; of those that go by the clock, or in a run without an end, at least one."""
    between = float(trainer.val_check_batch or "inf") * (trainer.check_val_every_n_epoch or 1)
    batches = epochs_of(trainer) * float(trainer.num_training_batches)
    if not trainer.limit_val_batches:
        return 0
    if getattr(trainer, "_val_check_time_interval", None) is not None or math.isinf(batches):
        return 1
    return int(batches / between)


def pictures_change(collate: Callable[[list[Any]], Any], rows: Iterable[Any], times: int = 4) -> bool:
    """Whether a collator makes other pixels of the same row each time, as one that augments does.

    The random states of Python, NumPy and torch are left as they were.
    """
    with isolate_rng():
        for row in rows:
            first, *others = (collate([row]).inputs["pixel_values"] for _ in range(times))
            if not all(torch.equal(other, first) for other in others):
                return True
    return False
