"""Puts an importance rule between the optimizer and the weights, and its state into checkpoints."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

import lightning as L
import torch
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities import rank_zero_info

from mllm_lit.answers import answer_nll
from mllm_lit.data.sample import Sample
from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.importance.files import check_buffers, read_buffers
from mllm_lit.importance.log import log_rule
from mllm_lit.loggers import log_scalars
from mllm_lit.progress import progress_bar
from mllm_lit.seed import Stream, stream_seed


class ImportanceCallback(L.Callback):
    """Glue for ``model.importance``; does nothing where that is ``None``.

    The module itself says when the gradients of a step are ready (:meth:`Rule.before_step`).

    Args:
        log_every: Optimizer steps between two readings of the rule's statistics, which also come at the end.
    """

    def __init__(self, log_every: int = 50) -> None:
        self.log_every = log_every
        self._state: dict[str, Any] | None = None
        self._logged = 0

    def setup(self, trainer: L.Trainer, pl_module: Any, stage: str) -> None:
        """Refuse strategies that lose track of single tensors, before anything is loaded.

        Raises:
            RuleError: The strategy is DeepSpeed or FSDP1.
        """
        if stage == "fit" and self._rule(pl_module) is not None:
            refuse_strategy(trainer.strategy)

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Refuse what a rule will not find; a resumed run, which is known by now, has it in its checkpoint.

        Raises:
            RuleError: The run has no set whose rows the rule looks at, or starts from one that has left it nothing.
            DatasetError: The run has no set of a name that the rule gives.
        """
        rule = self._rule(pl_module)
        if rule is None or self._state is not None:
            return
        if rule.needs_data == "source":
            wanted_sets(rule, trainer.datamodule)  # type: ignore[attr-defined]
        if rule.accumulates and pl_module.start.last is not None:
            check_buffers(rule, pl_module.start.last)

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Attach the rule to the optimizer, and show it the data that it asks for.

        Raises:
            RuleError: The rule cannot work on these parameters, or wants data that the run does not have.
        """
        rule = self._rule(pl_module)
        if rule is None:
            return
        torch.manual_seed(stream_seed(Stream.RULE))  # the seed of rules that are given none
        # Lightning runs the backward pass inside optimizer.step(), so the loop itself says when gradients are ready.
        named = pl_module.net.named_parameters()
        rule.attach(trainer.optimizers[0], named, pl_module.reference, before_step="caller")
        if pl_module.reference is not None:
            pl_module.reference = rule.reference  # once
        say_what_reference_is(rule, pl_module)
        if self._state is not None:
            rule.load_state_dict(self._state)
            rule.on_epoch_start(trainer.current_epoch)  # Lightning leaves that out in the middle of an epoch
        else:
            if rule.accumulates and pl_module.start.last is not None:
                refuse_new_tensors(rule, pl_module)
                rule.earlier = read_buffers(rule, pl_module.start.last)
            prepare(rule, trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """A new pass over the data."""
        if (rule := self._rule(pl_module)) is not None:
            rule.on_epoch_start(trainer.current_epoch)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        """Log the rule's statistics every so many steps."""
        if trainer.global_step % self.log_every == 0:
            self._log(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Let the rule touch the weights a last time, before they are scored and saved."""
        if (rule := self._rule(pl_module)) is not None:
            rule.finish()
            self._log(trainer, pl_module)

    def _log(self, trainer: L.Trainer, pl_module: Any) -> None:
        rule, step = self._rule(pl_module), trainer.global_step
        if rule is None or step == self._logged:
            return
        self._logged = step
        log_rule(trainer, rule, pl_module.loaded.layout, step)
        if (penalty := rule.penalty()) is not None:
            log_scalars(trainer, {"importance/penalty": float(penalty)}, step)

    def state_dict(self) -> dict[str, Any]:
        """The rule's state."""
        return {} if self._attached is None else self._attached.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the state until the rule is attached."""
        self._state = state_dict or None

    _attached: Rule | None = None

    def _rule(self, module: Any) -> Rule | None:
        self._attached = module.importance
        return module.importance


def refuse_strategy(strategy: Any) -> None:
    """Stop where a trainable tensor is not a tensor of its own.

    Raises:
        RuleError: Naming the strategy and those to take instead.
    """
    if isinstance(strategy, (DeepSpeedStrategy, FSDPStrategy)):
        raise RuleError(
            f"trainer.strategy is {type(strategy).__name__}, which keeps flat pieces of the parameters in place of the "
            "tensors, so no rank, mask or distance of a tensor can be computed. Train importance rules with DDP or "
            "FSDP2 (ModelParallelStrategy), or leave model.importance out."
        )


def say_what_reference_is(rule: Rule, module: Any) -> None:
    """Tell the user what θ0 means for tensors that the backbone does not have."""
    own = {id(parameter) for parameter in module.adapter.opened_parameters(module.net).values()}
    created = [name for name, parameter in rule.parameters.items() if id(parameter) not in own]
    if not rule.needs_reference:
        return
    if module.start.any:
        when = "in the backbone, before any run" if rule.from_base else "at the start, as other runs have left them"
        rank_zero_info(f"θ0 of {type(rule).__name__} is what the trained tensors held {when} (importance.reference).")
    if created and module.starts_from_adapter and not rule.from_base:
        return
    if created:
        rank_zero_info(
            f"{len(created)} of the {len(rule.parameters)} trainable tensors were created by "
            f"{type(module.adapter).__name__}. Their θ0 is what they held when they were attached, not knowledge of "
            f"the backbone, and {type(rule).__name__} pulls them back to that (to 0 for a fresh LoRA B)."
        )


def refuse_new_tensors(rule: Rule, module: Any) -> None:
    """Stop where an adapter's new tensors have the names of those that were merged, but are none of them.

    Raises:
        RuleError: Saying what to train instead.
    """
    if module.start.kept is not None:
        return
    own = {id(parameter) for parameter in module.adapter.opened_parameters(module.net).values()}
    new = [name for name, parameter in rule.parameters.items() if id(parameter) not in own]
    if new:
        raise RuleError(
            f"importance.accumulate is true, but with model.start: merge {len(new)} of the {len(rule.parameters)} "
            f"trainable tensors, such as {new[0]!r}, are new ones of {type(module.adapter).__name__}, of which "
            f"{module.start.last} knows nothing. Set model.start: keep, train the backbone's own weights "
            "(mllm_lit.adapters.Full), or set importance.accumulate: false."
        )


def prepare(rule: Rule, trainer: L.Trainer, module: Any) -> None:
    """Show a rule the gradients or the model that it wants to see before the first step.

    Every rank sees the same rows, so that all of them choose alike.
    """
    if trainer.progress_bar_callback is not None and trainer.is_global_zero:
        rule.progress = show_progress
    rule.forward_context = trainer.precision_plugin.forward_context
    if rule.needs_data == "model":
        rule.prepare(model=module.loaded.model)
    elif rule.needs_data is not None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        rows = wanted_rows(rule, data)
        size = rule.batch_size or data.batch_size
        rule.prepare(gradients(module, rows, size))
    else:
        rule.prepare()
    module.zero_grad(set_to_none=True)


def wanted_rows(rule: Rule, data: Any) -> list[Sample]:
    """Rows of the target's train split, or of some sets' train splits in turns, in an order drawn with the seed.

    Raises:
        RuleError: See :func:`wanted_sets`.
    """
    sets = [data.train_rows]
    if rule.needs_data == "source":
        sets = training_rows(wanted_sets(rule, data).values())
    return in_turns(sets, stream_seed(Stream.PROBED_ROWS))


def training_rows(sets: Iterable[Any]) -> list[list[Sample]]:
    """The rows of each set's train split that are not scored."""
    return [one.task.training_rows(one.root, one.task.split_names["train"], (one.split,)) for one in sets]


def in_turns(sets: Sequence[Sequence[Sample]], seed: int) -> list[Sample]:
    """The rows of several sets, each in an order drawn with the seed: one of each set, then the next of each."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = [[rows[i] for i in torch.randperm(len(rows), generator=generator).tolist()] for rows in sets]
    return [row for turn in zip_longest(*shuffled) for row in turn if row is not None]


def wanted_sets(rule: Rule, data: Any) -> Mapping[str, Any]:
    """The sets whose train splits a rule looks at: all sources, or those that it names.

    Raises:
        RuleError: There is none.
        DatasetError: There is none of a name.
    """
    sets: Mapping[str, Any] = data.named(rule.rows_from, "importance.rows_from")
    if not sets:
        raise RuleError(
            f"{type(rule).__name__} looks at rows of the sources' train splits, and this run has no sources. Give it "
            "some (data.sources), name sets of data.others in importance.rows_from, or for EWC take fisher: generated, "
            "which needs none."
        )
    return sets


def gradients(module: Any, rows: list[Sample], batch_size: int) -> Iterator[None]:
    """One pass over ``rows``: leaves the gradient of each batch's mean answer NLL in the parameters' ``.grad``."""
    collate = module.collate
    for i, start in enumerate(range(0, len(rows), batch_size)):
        batch = collate(rows[start : start + batch_size]).to(module.device)
        module.zero_grad(set_to_none=True)
        torch.manual_seed(stream_seed(Stream.PROBED_DROPOUT, i))  # of dropout
        with torch.enable_grad(), module.trainer.precision_plugin.forward_context():
            nll, counts = answer_nll(module.net, batch)
            loss = nll.sum() / counts.sum()
        torch.autograd.backward(loss)
        yield


def show_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """Draw a bar while a rule looks at its data; see :attr:`Rule.progress`."""
    return progress_bar(items, total=total, desc="before training · importance", unit=" batches")
