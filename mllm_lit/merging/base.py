"""What every merge is: a way back from fine-tuned weights towards θ0, after training."""

from collections.abc import Mapping

import torch
from torch import Tensor

from mllm_lit.errors import UserError


class MergeError(UserError):
    """Two sets of weights cannot be merged as asked; the message says why."""


class Merge:
    """Base of the merges, itself the one that keeps the fine-tuned weights.

    A subclass overrides :meth:`tensor`, or :meth:`start` too when it has to see all tensors before the first one.
    """

    def __call__(self, reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Merge every tensor of ``tuned`` with its θ0.

        Args:
            reference: θ0 by name; tensors that ``tuned`` lacks are ignored.
            tuned: θ by name, as after training.

        Returns:
            By name, in the dtype of ``tuned``; computed in fp32.

        Raises:
            MergeError: A tensor has no θ0, or one of another shape.
        """
        for name, value in tuned.items():
            if name not in reference:
                raise MergeError(
                    f"{name!r} has no value before fine-tuning. Merges act on weights of the base: merge an adapter "
                    "into them first."
                )
            if reference[name].shape != value.shape:
                raise MergeError(
                    f"{name!r} was {tuple(reference[name].shape)} before fine-tuning and is {tuple(value.shape)} now; "
                    "are these weights of the same model?"
                )
        with torch.no_grad():
            self.start(reference, tuned)
            return {
                name: self.tensor(name, reference[name].to(value.device, torch.float32), value.float()).to(value.dtype)
                for name, value in tuned.items()
            }

    def start(self, reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
        """Look at all tensors before the first is merged."""

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        """The merged tensor, in fp32, from θ0 and θ in fp32."""
        return after


def changes(reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor], name: str) -> Tensor:
    """|θ − θ0| of one tensor, fp32."""
    after = tuned[name].detach().float()
    return (after - reference[name].detach().to(after.device, torch.float32)).abs()
