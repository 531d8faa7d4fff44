"""Rules that choose once which entries train and keep all others at θ0."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.tensors import chunks, local


class FixedMask(Rule):
    """Base of the fixed masks. A subclass calls :meth:`keep_only` from :meth:`start` or :meth:`prepare`.

    Args:
        apply: ``weights`` puts θ0 back after every step, exact for any optimizer and weight decay at the price of
            keeping θ0; ``gradients`` zeroes gradients before it, which keeps a weight where it is only without weight
            decay and with an elementwise optimizer (AdamW, SGD) whose moments start at zero. Clipping then sees the
            masked gradient.
        **shared: Of θ0; see :class:`~mllm_lit.importance.base.Rule`.
    """

    def __init__(self, apply: Literal["weights", "gradients"] = "weights", **shared: Any) -> None:
        super().__init__(**shared)
        self.apply = apply
        self.needs_reference = apply == "weights"

    def start(self) -> None:
        if self.apply == "gradients":
            held = set(self.parameters.values())
            for group in self.optimizer.param_groups:
                if group.get("weight_decay", 0.0) and held.intersection(group["params"]):
                    raise RuleError(
                        f"{type(self).__name__} masks gradients, but weight_decay is {group['weight_decay']} and would "
                        "move masked weights all the same: set it to 0, or use apply: weights."
                    )

    def keep_only(self, masks: Mapping[str, Tensor]) -> None:
        """Train where these local bool tensors are true."""
        self.buffers["trained"] = self.like_parameters(torch.bool)
        for name, mask in masks.items():
            local(self.buffers["trained"][name]).copy_(mask)

    @torch.no_grad()
    def before_step(self) -> None:
        if self.apply != "gradients":
            return
        for name in self.parameters:
            gradient = self.gradient(name)
            if gradient is not None:
                gradient.mul_(self.trained(name))

    def after_step(self) -> None:
        if self.apply != "weights":
            return
        assert self.reference is not None
        for name, parameter in self.parameters.items():
            for weight, base, trained in chunks(local(parameter), self.reference[name], self.trained(name)):
                weight.copy_(torch.where(trained, weight, base.to(weight.device, weight.dtype)))

    def mask(self, name: str) -> Tensor:
        return self.trained(name).float()

    def trained(self, name: str) -> Tensor:
        """The local bool mask of a parameter.

        Raises:
            RuleError: Nothing has been chosen yet.
        """
        if "trained" not in self.buffers:
            raise RuleError(f"{type(self).__name__} has not chosen its mask: call prepare() before the first step.")
        return local(self.buffers["trained"][name])
