"""Keeps a run's settings in its checkpoints, and stops a resumed run whose settings differ from them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_info

from mllm_lit.callbacks.checkpoint import read
from mllm_lit.errors import UserError
from mllm_lit.module import MLLMModule

Settings = dict[str, Any]
"""Dotted name -> value, as ``--NAME VALUE`` would set it."""

FREE = (
    "data.check_images",
    "data.eval_tokens",
    "data.max_eval_samples",
    "data.name",
    "data.num_workers",
    "data.others",
    "data.sources",
    "data.test_split",
    "data.val_samples",
    "data.val_split",
    "model.backbone.attn_implementation",
    "model.backbone.compile",
    "model.backbone.gradient_checkpointing",
    "model.backbone.path",
    "model.backbone.revision",
    "model.importance_log_every",
    "model.max_new_tokens",
    "model.start",
    "model.start_from",
    "model.vision_cache",
)
"""Without effect on the weights (a backbone and a run to start from are known by their weights, wherever they lie)."""
WINS = (
    "data.root",
    "model.adapter.connector_lr",
    "model.adapter.lora_plus_ratio",
    "model.adapter.lr",
    "model.adapter.vision_lr",
    "model.adapter.weight_decay",
    "model.betas",
    "model.eps",
    "model.schedule",
    "model.warmup",
    "trainer.gradient_clip_algorithm",
    "trainer.gradient_clip_val",
    "trainer.max_epochs",
    "trainer.max_steps",
)
"""May be changed in the middle of a run, if that is said on the command line."""
TRAINER = ("accumulate_grad_batches", "gradient_clip_algorithm", "gradient_clip_val", "max_epochs", "max_steps")
ROWS = "data.batch_size x ranks"


class ResumeError(UserError, ValueError):
    """A run cannot go on from a checkpoint because its settings differ; the message names them with both values."""


class ResumeCallback(L.Callback):
    """Holds the settings of the run.

    Args:
        settings: All settings, flat.
        explicit: The names that the command line sets.
    """

    def __init__(self, settings: Mapping[str, Any], explicit: Sequence[str] = ()) -> None:
        self.settings = {name: value for name, value in settings.items() if not covered(name, FREE)}
        self.explicit = tuple(explicit)
        self.changed: dict[str, tuple[Any, Any]] = {}

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Store the settings, and what ``precision: auto`` was."""
        checkpoint["settings"] = self._of(trainer)
        checkpoint["precision"] = str(trainer.precision)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Compare them, the number of ranks included.

        Raises:
            ResumeError: See :func:`compare`.
        """
        if trainer.state.fn != "fit":
            return
        self.changed = compare(checkpoint.get("settings", {}), self._of(trainer), self.explicit)
        for name, (old, new) in self.changed.items():
            rank_zero_info(f"From here on {name} is {new}, as given on the command line; it was {old}.")
        here = str(trainer.precision)
        if (before := checkpoint.get("precision", here)) != here:
            # What trains and the optimizer's state are in fp32 under either, so nothing is lost.
            rank_zero_info(f"From here on the precision is {here}; the checkpoint's run had {before}.")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Have Lightning start a run that is resumed after its last step, too, so that it ends with all it should."""
        self._steps = trainer.fit_loop.epoch_loop.max_steps
        if self._steps > 0:
            trainer.fit_loop.epoch_loop.max_steps = self._steps + 1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Put the learning rates and decays of this run in place of the checkpoint's, if they were changed."""
        trainer.fit_loop.epoch_loop.max_steps = self._steps
        if not self.changed:
            return
        assert isinstance(pl_module, MLLMModule)
        optimizer, scheduler = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
        assert pl_module.net is not None
        groups = pl_module.adapter.parameter_groups(pl_module.net, pl_module.adapter.attached_layout())
        scheduler.base_lrs = [group["lr"] for group in groups]
        factors = [factor(scheduler.last_epoch) for factor in scheduler.lr_lambdas]  # type: ignore[union-attr]
        for group, own, factor in zip(optimizer.param_groups, groups, factors, strict=True):
            group["initial_lr"], group["lr"] = own["lr"], own["lr"] * factor
            group["weight_decay"] = own["weight_decay"]
            group["betas"], group["eps"] = pl_module.betas, pl_module.eps

    def _of(self, trainer: L.Trainer) -> Settings:
        own = dict(self.settings)
        # One rank with eight rows sees what two ranks with four see.
        own[ROWS] = own.pop("data.batch_size", 0) * trainer.world_size
        return own


def compare(stored: Settings, current: Settings, explicit: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """What differs between the settings of a checkpoint and of the run that goes on from it.

    Args:
        stored: The checkpoint's.
        current: The run's.
        explicit: The names that the command line sets.

    Raises:
        ResumeError: They differ in what cannot change, or in what nobody asked to change.
    """
    changed = differences(stored, current)
    refused = {name: v for name, v in changed.items() if not (covered(name, WINS) and covered(name, explicit))}
    if refused:
        lines = "\n".join(f"  {name}: {old} in the checkpoint, {new} here" for name, (old, new) in refused.items())
        raise ResumeError(
            f"The settings differ from those of the checkpoint's run:\n{lines}\nTake them back to go on. Learning "
            "rates, decay, schedule, clipping, length and data.root may change in the middle of a run, but only if "
            "given on the command line, such as --model.adapter.lr 1e-5; the others need a new run."
        )
    return changed


def check_resumable(path: Path, settings: Settings, explicit: Sequence[str]) -> None:
    """Compare all settings that are known before anything is loaded.

    Raises:
        CheckpointError: The file is no checkpoint of this package.
        ResumeError: See :func:`compare`.
    """
    stored = dict(read(path).get("settings", {}))
    stored.pop(ROWS, None)
    current = {name: v for name, v in settings.items() if not covered(name, FREE) and name != "data.batch_size"}
    compare(stored, current, explicit)


def covered(name: str, names: Sequence[str]) -> bool:
    """Whether a setting is one of ``names`` or lies below one.

    >>> covered("data.sources.sets.vqa.split", ["data.sources"])
    True
    """
    return any(name == other or name.startswith(f"{other}.") for other in names)


def differences(stored: Mapping[str, Any], current: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What differs between two flat mappings, with both values.

    >>> differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
    {'b': (2, 3), 'c': (None, 4)}
    """
    names = sorted(stored.keys() | current.keys())
    return {n: (stored.get(n), current.get(n)) for n in names if stored.get(n) != current.get(n)}


def explicit(arguments: Sequence[str]) -> list[str]:
    """The names of the settings on a command line, configuration files aside.

    >>> explicit(["fit", "--config", "a.yaml", "--model.adapter.init_args.lr=1e-3", "--seed_everything", "1"])
    ['model.adapter.lr', 'seed_everything']
    """
    names = [word[2:].partition("=")[0].rstrip("+") for word in arguments if word.startswith("--")]
    return [name.replace(".init_args", "") for name in names if name != "config"]
