"""Puts an importance rule between the optimizer and the weights, and its state into checkpoints."""

from typing import Any

import lightning as L

from mllm_lit.importance.base import Rule
from mllm_lit.module import MLLMModule


class ImportanceCallback(L.Callback):
    """Glue for ``model.importance``; does nothing where that is ``None``.

    Args:
        log_every: Optimizer steps between two readings of the rule's statistics.
    """

    def __init__(self, log_every: int = 50) -> None:
        self.log_every = log_every
        self._state: dict[str, Any] | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Attach the rule to the optimizer.

        Raises:
            ValueError: The rule has to see gradients before training, which this callback does not give it.
        """
        rule = self._rule(pl_module)
        if rule is None:
            return
        assert isinstance(pl_module, MLLMModule)
        if rule.needs_data is not None:
            raise ValueError(
                f"{type(rule).__name__} has to see {rule.needs_data} gradients before the first step; call its "
                "prepare() from a loop of your own, or choose a rule that needs none."
            )
        # Lightning runs the backward pass inside optimizer.step(), so the loop itself says when gradients are ready.
        rule.attach(trainer.optimizers[0], pl_module.trainable(), pl_module.reference, before_step="caller")
        if self._state is not None:
            rule.load_state_dict(self._state)
        else:
            rule.prepare()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Gradients are ready."""
        if (rule := self._rule(pl_module)) is not None:
            rule.before_step()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """A new pass over the data."""
        if (rule := self._rule(pl_module)) is not None:
            rule.on_epoch_start(trainer.current_epoch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Log the rule's statistics, as means over the tensors of each role."""
        rule = self._rule(pl_module)
        step = trainer.global_step
        if rule is None or step == 0 or step % self.log_every or step == getattr(self, "_logged", 0):
            return
        self._logged = step
        assert isinstance(pl_module, MLLMModule)
        assert pl_module.loaded is not None
        sums: dict[str, list[float]] = {}
        for name, figures in rule.statistics().items():
            role = pl_module.loaded.layout.role_of(name)
            for key, value in figures.items():
                sums.setdefault(f"importance/{role}/{key}", []).append(float(value))
        for logger in trainer.loggers:
            logger.log_metrics({key: sum(values) / len(values) for key, values in sums.items()}, step=step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Let the rule touch the weights a last time, before they are scored and saved."""
        if (rule := self._rule(pl_module)) is not None:
            rule.finish()

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        return {} if self._attached is None else self._attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the rule is attached."""
        self._state = state_dict or None

    _attached: Rule | None = None

    def _rule(self, module: L.LightningModule) -> Rule | None:
        assert isinstance(module, MLLMModule)
        self._attached = module.importance
        return module.importance
