"""What every importance rule is: something that decides how updates may land on the weights."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from mllm_lit.adapters.copies import whole
from mllm_lit.errors import UserError
from mllm_lit.importance.reference import Reference
from mllm_lit.tensors import ShardSums, chunks, local, shard_like

Progress = Callable[[Iterable[Any], int], Iterable[Any]]
"""Passes on the items of an iterable whose length is known, and may draw a bar meanwhile."""

BINS = 50
"""Of :meth:`Rule.histograms`."""


class RuleError(UserError):
    """A rule cannot do what is asked here; the message says why and what to change."""


class Rule:
    """Base of all rules, itself the rule that changes nothing.

    In a plain loop, one call wires a rule to the optimizer and the rest happens inside ``optimizer.step()``::

        rule = Spider()
        rule.attach(optimizer, model.named_parameters())

    A subclass overrides what it needs of :meth:`start`, :meth:`prepare`, :meth:`before_step`, :meth:`after_step`,
    :meth:`on_epoch_start`, :meth:`finish` and :meth:`mask`, and keeps tensors that a resumed run needs in
    :attr:`buffers`.

    Args:
        reference_on: Where θ0 is kept: ``device``, ``host`` or the path of a file to map
            (:meth:`Reference.capture`). Rules without use for θ0 keep none.
        reference: What θ0 is in a run that starts from another: ``start``, what the parameters hold when training
            begins, or ``base``, what they held in the backbone before any run (tensors that the adapter created: when
            it was attached). It is for whoever calls :meth:`attach` to give the values of ``base``.
    """

    needs_reference: bool = False
    needs_data: Literal["target", "source", "model"] | None = None
    """What :meth:`prepare` has to be given: gradients of batches of the target's or of a source's train split, or the
    model itself."""
    batch_size: int | None = None
    """Rows of a batch whose gradient :meth:`prepare` wants; ``None`` leaves it to the loop."""
    rows_from: Sequence[str] | None = None
    """With ``needs_data`` of ``source``, names of the sets whose train splits are wanted; ``None`` for all sources."""
    accumulates: bool = False
    """Whether :meth:`prepare` adds to what the rule of the run before this one has gathered, :attr:`earlier`."""

    def __init__(self, reference_on: str = "device", reference: Literal["start", "base"] = "start") -> None:
        if reference not in ("start", "base"):
            raise RuleError(f"importance.reference is {reference!r}; expected start or base.")
        self.reference_on, self.from_base = reference_on, reference == "base"
        self.optimizer: Optimizer
        self.parameters: dict[str, nn.Parameter] = {}
        self.frozen: dict[str, Tensor] = {}
        """Tensors that do not train, for rules that read the base beside an adapter."""
        self.reference: Reference | None = None
        self.buffers: dict[str, dict[str, Tensor]] = {}
        """State by kind and parameter name; sharded as the parameters are."""
        self.earlier: Mapping[str, Mapping[str, Tensor]] = {}
        """:attr:`buffers` of the same rule at the end of the run before, whole; to be set before :meth:`prepare`."""
        self.progress: Progress = no_progress
        """Wraps what :meth:`prepare` goes through; a loop may set it to draw a bar."""
        self.forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext
        """Makes what :meth:`prepare` enters around each forward pass of the model; a loop sets its autocast here."""
        self.steps = 0
        self._handles: list[RemovableHandle] = []
        self._seen: dict[str, Tensor] = {}

    # What a loop calls.

    def attach(
        self,
        optimizer: Optimizer,
        named_parameters: Iterable[tuple[str, Tensor]],
        reference: Mapping[str, Tensor] | None = None,
        *,
        before_step: Literal["hook", "caller"] = "hook",
    ) -> Self:
        """Take charge of the trainable tensors.

        Args:
            optimizer: Already built; it has to hold every trainable tensor of ``named_parameters``.
            named_parameters: As ``model.named_parameters()`` gives them; frozen ones are not touched.
            reference: θ0 by name, or a :class:`Reference` captured earlier (before a checkpoint was loaded, say);
                ``None`` takes what the parameters hold now.
            before_step: ``hook`` calls :meth:`before_step` from ``optimizer.step()``, where a plain loop has its
                gradients ready (clipped already, if it clips). ``caller`` leaves that to the loop, for loops that run
                the backward pass inside ``optimizer.step`` and for reading gradients before they are clipped. With a
                gradient scaler it calls ``scaler.unscale_(optimizer)`` first; whether the step is taken is not known
                then, so what must count for steps that are taken alone belongs into :meth:`after_step`.

        Raises:
            RuleError: There is nothing to train, or the tensors cannot be addressed one by one.
        """
        if self._handles:
            raise RuleError(f"{type(self).__name__} is attached already; detach() it first or make a second one.")
        named = dict(named_parameters)
        self.optimizer = optimizer
        self.parameters = {name: p for name, p in named.items() if isinstance(p, nn.Parameter) and p.requires_grad}
        self.frozen = {name: p for name, p in named.items() if name not in self.parameters}
        _check(self.parameters, optimizer)
        self.sum_shards = ShardSums(list(self.parameters.values()))
        self.before_step_by = before_step
        if self.needs_reference:
            self.reference = (
                reference.beside(self.parameters, self.reference_on)
                if isinstance(reference, Reference)
                else Reference.capture(self.parameters, reference, self.reference_on)
            )
            missing = [name for name in self.parameters if name not in self.reference]
            if missing:
                raise RuleError(
                    f"θ0 was captured without {missing[0]!r} ({len(missing)} missing): capture it after the adapter "
                    "has opened what it trains."
                )
        self.start()
        if before_step == "hook":
            self._handles.append(optimizer.register_step_pre_hook(lambda *_: self._before_step()))
        self._handles.append(optimizer.register_step_post_hook(lambda *_: self._after_step()))
        return self

    def detach(self) -> None:
        """Let go of the optimizer; the state stays."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    # What a rule overrides.

    def start(self) -> None:
        """Allocate state and check the arguments; called at the end of :meth:`attach`, θ0 known."""

    def prepare(self, gradients: Iterator[Any] | None = None, model: nn.Module | None = None) -> None:
        """Look at data before the first step; called after :meth:`attach`, not when a run is resumed.

        Args:
            gradients: Each ``next`` runs one more batch forward and backward and leaves the gradient of its mean loss,
                and that alone, in the parameters' ``.grad``. For rules whose :attr:`needs_data` is ``target`` or
                ``source``; how many batches are drawn is up to the rule.
            model: A Hugging Face model (``generate``, ``logits``), the attached parameters in it. For ``model``.
        """

    def before_step(self) -> None:
        """Read or change the gradients of the coming step."""

    def after_step(self) -> None:
        """Act on the weights; gradients are still there. Not called for steps that a gradient scaler skips."""

    def on_epoch_start(self, epoch: int) -> None:
        """A new pass over the data begins."""

    def finish(self) -> None:
        """Training is over; the weights may be touched once more."""

    def mask(self, name: str) -> Tensor | None:
        """How much of an update each local entry of a parameter keeps, in [0, 1]; ``None`` where all is kept."""
        return None

    def penalty(self) -> Tensor | None:
        """The value of the rule's loss term at the current weights, for logging (its gradient is applied already)."""
        return None

    # State and what to log.

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs, θ0 itself excepted, of which the identity is kept.

        Buffers that are sharded are gathered, whole and on the CPU, so every rank has to call this.
        """
        return {
            "rule": type(self).__name__,
            "steps": self.steps,
            "identity": self.reference.identity if self.reference is not None else None,
            "buffers": {
                kind: {name: whole(t) if isinstance(t, DTensor) else t for name, t in tensors.items()}
                for kind, tensors in self.buffers.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`; call it after :meth:`attach`.

        Raises:
            RuleError: The state belongs to another rule, to other parameters, or to another base.
        """
        if state["rule"] != type(self).__name__:
            raise RuleError(
                f"The checkpoint holds the state of {state['rule']}, this run uses {type(self).__name__}: "
                "resume with the rule that it was trained with."
            )
        identity = self.reference.identity if self.reference is not None else None
        if state["identity"] != identity:
            raise RuleError(
                f"The checkpoint was trained from other weights (θ0 {state['identity']}, here {identity}). Resume onto "
                "the same backbone, and attach the rule, or capture its Reference, before trained weights are loaded."
            )
        buffers: dict[str, dict[str, Tensor]] = {}
        for kind, tensors in state["buffers"].items():
            if set(tensors) - set(self.parameters):
                unknown = sorted(set(tensors) - set(self.parameters))
                raise RuleError(f"The checkpoint's {kind!r} has tensors that do not train here: {unknown[:3]}.")
            here = self.buffers.get(kind, {})
            buffers[kind] = {name: _restore(here.get(name), self.parameters[name], t) for name, t in tensors.items()}
        self.buffers = buffers
        self.steps = state["steps"]

    @torch.no_grad()
    def statistics(self) -> dict[str, dict[str, Tensor]]:
        """Per parameter, fp64 scalars; computed now, so call it as often as you log and no oftener.

        ``selected`` (share of entries with a mask above 0), ``mask`` (mean), ``overlap`` (of the selected entries with
        those of the last call, intersection over union), ``distance`` (‖θ − θ0‖₂), ``norm`` (‖θ0‖₂) and
        ``relative_distance`` (their quotient), each where the rule has a mask or θ0. Under sharding every rank has to
        call it and gets the figures of the whole tensors.
        """
        rows, keys = [], ("selected", "mask", "both", "either", "distance", "norm")
        had, masked = bool(self._seen), False
        for name, parameter in self.parameters.items():
            weight = local(parameter)
            row = torch.zeros(len(keys), dtype=torch.float64, device=weight.device)
            mask = self.mask(name)
            if mask is not None:
                masked = True
                chosen = mask > 0
                last = self._seen[name].to(chosen.device) if had else chosen
                counts = (chosen.sum(), mask.double().sum(), (chosen & last).sum(), (chosen | last).sum())
                row[:4] = torch.stack([count.double() for count in counts])
                self._seen[name] = chosen.cpu()
            if self.reference is not None:
                for now, base in chunks(weight, self.reference[name]):
                    before = base.to(now.device, torch.float64)
                    row[4] += (now - before).square().sum()
                    row[5] += before.square().sum()
            rows.append(row)
        table = self.sum_shards(torch.stack(rows))
        result: dict[str, dict[str, Tensor]] = {}
        for (name, parameter), row in zip(self.parameters.items(), table, strict=True):
            figures = result[name] = {}
            if masked:
                figures["selected"], figures["mask"] = row[0] / parameter.numel(), row[1] / parameter.numel()
                if had:
                    figures["overlap"] = torch.where(row[3] > 0, row[2] / row[3].clamp_min(1), 1.0)
            if self.reference is not None:
                figures["distance"], figures["norm"] = row[4].sqrt(), row[5].sqrt()
                figures["relative_distance"] = (row[4] / row[5].clamp_min(torch.finfo(torch.float64).tiny)).sqrt()
        return result

    @torch.no_grad()
    def histograms(self) -> dict[str, Tensor]:
        """Per parameter, how many of its entries have a mask in each of :data:`BINS` equal parts of [0, 1].

        Int64 (BINS,), on the CPU; only parameters with a mask. Under sharding every rank has to call it.
        """
        rows, masked = [], []
        for name, parameter in self.parameters.items():
            mask = self.mask(name)
            row = torch.zeros(BINS, dtype=torch.float64, device=local(parameter).device)
            if mask is not None:
                masked.append(name)
                row += torch.histc(mask.float(), BINS, 0.0, 1.0)
            rows.append(row)
        table = self.sum_shards(torch.stack(rows)).long().cpu()
        return {name: row for name, row in zip(self.parameters, table, strict=True) if name in masked}

    # Pieces for subclasses.

    def like_parameters(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """A zero tensor per parameter, sharded as it is."""
        return {name: torch.zeros_like(p, dtype=dtype, requires_grad=False) for name, p in self.parameters.items()}

    def gradient(self, name: str) -> Tensor | None:
        """This rank's part of a gradient, or ``None`` when the step left none.

        Raises:
            RuleError: It is sparse, or sharded otherwise than its parameter.
        """
        parameter, grad = self.parameters[name], self.parameters[name].grad
        if grad is None:
            return None
        if grad.is_sparse:
            raise RuleError(f"The gradient of {name!r} is sparse; build the embedding with sparse=False.")
        if isinstance(grad, DTensor) and isinstance(parameter, DTensor) and grad.placements != parameter.placements:
            raise RuleError(
                f"The gradient of {name!r} is placed as {grad.placements}, its weight as {parameter.placements}; "
                "reduce it before the optimizer step, as FSDP2 does."
            )
        return local(grad)

    def sum_gradients(self, gradients: Iterator[Any] | None, batches: int, square: bool = False) -> dict[str, Tensor]:
        """Σg, or Σg², of this rank's parts over the first ``batches`` that :meth:`prepare` was given.

        Raises:
            RuleError: There were none, or fewer.
        """
        sums = {name: torch.zeros_like(local(p), dtype=torch.float32) for name, p in self.parameters.items()}
        seen = 0
        for _ in self.progress(islice(gradients or (), batches), batches):
            seen += 1
            for name, total in sums.items():
                gradient = self.gradient(name)
                if gradient is not None:
                    total.add_(gradient.float().square() if square else gradient)
        if seen < batches:
            raise RuleError(
                f"{type(self).__name__} wants the gradients of {batches} batches ({self.needs_data}), got {seen}; "
                "pass prepare() an iterator that runs them, or ask for fewer."
            )
        for parameter in self.parameters.values():
            parameter.grad = None
        return sums

    def learning_rates(self) -> dict[str, float]:
        """Of each parameter, as its group has it now."""
        rates = {p: float(group["lr"]) for group in self.optimizer.param_groups for p in group["params"]}
        return {name: rates[parameter] for name, parameter in self.parameters.items()}

    @property
    def _skips(self) -> bool:
        """Whether the step that runs is one that leaves the weights alone: a scaler found an overflow.

        It does not call the optimizer then, unless that is a fused one, which is told of the overflow and skips itself.
        """
        return bool(getattr(self.optimizer, "found_inf", None))

    @torch.no_grad()
    def _before_step(self) -> None:
        if self._skips:
            return
        if (scale := getattr(self.optimizer, "grad_scale", None)) is not None:
            # A fused optimizer divides by the scale in its kernel, too late for whoever reads the gradients here.
            for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
                if parameter.grad is not None:
                    local(parameter.grad).div_(scale)
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]
        self.before_step()

    def _after_step(self) -> None:
        if self._skips:
            return
        with torch.no_grad():
            self.after_step()
        self.steps += 1


def no_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    """The items as they are."""
    return items


def _check(parameters: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
    if not parameters:
        raise RuleError("No tensor trains: attach the adapter first, and check that it opens something.")
    for name, parameter in parameters.items():
        if hasattr(parameter, "ds_id") or getattr(parameter, "_fsdp_flattened", False):
            raise RuleError(
                f"{name!r} is split by DeepSpeed or FSDP1 in a way that loses track of single tensors, so no statistic "
                "of a tensor can be computed. Use DDP or FSDP2 (fully_shard)."
            )
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    outside = [name for name, parameter in parameters.items() if id(parameter) not in held]
    if outside:
        raise RuleError(
            f"{len(outside)} of {len(parameters)} trainable tensors are not in the optimizer, such as {outside[0]!r}. "
            "Freeze them, or build the optimizer from the model's own parameters (DeepSpeed's does not hold them: "
            "use DDP or FSDP2)."
        )
    devices = {local(p).device for p in parameters.values()}
    if len(devices) > 1:
        raise RuleError(f"The trainable tensors are on several devices ({sorted(map(str, devices))}); put them on one.")


def _restore(here: Tensor | None, parameter: nn.Parameter, saved: Tensor) -> Tensor:
    """``saved`` as a buffer beside ``parameter``, keeping the buffer's own dtype and device if there is one."""
    if saved.shape != parameter.shape or isinstance(saved, DTensor):
        raise RuleError(f"A saved buffer has shape {tuple(saved.shape)}, its parameter {tuple(parameter.shape)}.")
    if here is None:
        here = torch.zeros_like(parameter, dtype=saved.dtype, requires_grad=False)
    local(here).copy_(shard_like(saved, parameter))
    return here
