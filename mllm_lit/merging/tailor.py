"""Model Tailor (Zhu et al., ICML 2024, arXiv 2402.12048): a patch of the changes that matter, and a compensation."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from mllm_lit.errors import in_range
from mllm_lit.merging.base import Merge, MergeError
from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums


class ModelTailor(Merge):
    """Keep the entries of each matrix with the highest score, and correct them for those that went back to θ0.

    With Δ = θ − θ0 and H = 2·XᵀX of the inputs X of a linear layer, damped: the score is
    ``ω·z(|Δ|) + (1 − ω)·z(θ² / [H⁻¹]_jj²)``, z standardising over the matrix: how far an entry moved, and how much
    the layer's output hangs on it. The kept entries of a row
    are then moved so that the row's output on the calibration inputs comes as close to the fine-tuned one as they can:
    ``δ_K = Δ_K + H_KK⁻¹ H_KR Δ_R`` for kept K and reverted R. That is the exact minimum of which the surgeon's
    entry-by-entry updates are steps. A tensor without calibration inputs (a norm, a bias, a frozen path) is scored by
    |Δ| alone and not compensated.

    Args:
        keep: Share of each tensor that is patched.
        omega: ω.
        damping: Share of the mean diagonal of H that is added to it.
        compensate: Off, the kept entries keep their fine-tuned values.
    """

    def __init__(self, keep: float = 0.1, omega: float = 0.5, damping: float = 0.01, compensate: bool = True) -> None:
        self.keep, self.omega = in_range("keep", keep, 0, 1), in_range("omega", omega, 0, 1)
        # H can be singular.
        self.damping, self.compensate = in_range("damping", damping, above=0), compensate
        self.hessians: Mapping[str, Tensor] = {}
        """H (in, in) by name of a weight, from :func:`hessians`."""

    def start(self, reference: Mapping[str, Tensor], tuned: Mapping[str, Tensor]) -> None:
        for name, hessian in self.hessians.items():
            if name in tuned and hessian.shape != (tuned[name].shape[-1],) * 2:
                raise MergeError(f"H of {name!r} is {tuple(hessian.shape)}, its weight {tuple(tuned[name].shape)}.")

    def tensor(self, name: str, before: Tensor, after: Tensor) -> Tensor:
        change = after - before
        hessian = self._damped(name, change.device)
        score = change.abs()
        if hessian is not None:
            curvature = torch.linalg.inv(hessian).diagonal()
            score = self.omega * _z(score) + (1 - self.omega) * _z((after / curvature).square().float())
        score = score - score.min() if score.numel() else score
        kept = select_top({name: after}, lambda _: score, self.keep, ShardSums([after]))[name]
        if hessian is None or not self.compensate:
            return torch.where(kept, after, before)
        return before + _compensated(change, kept, hessian)

    def _damped(self, name: str, device: torch.device) -> Tensor | None:
        if name not in self.hessians:
            return None
        hessian = self.hessians[name].to(device, torch.float64)
        mean = hessian.diagonal().mean()
        # Inputs that were all zero say nothing about any entry.
        return None if mean == 0 else hessian + self.damping * mean * torch.eye(len(hessian), device=device).double()


def _z(score: Tensor) -> Tensor:
    return (score - score.mean()) / score.std().clamp_min(torch.finfo(torch.float32).tiny)


def _compensated(change: Tensor, kept: Tensor, hessian: Tensor) -> Tensor:
    result = torch.where(kept, change, 0.0)
    for row in range(len(change)):
        inside = kept[row].nonzero().flatten()
        outside = (~kept[row]).nonzero().flatten()
        if len(inside) and len(outside):
            pull = hessian[inside][:, outside] @ change[row, outside].double()
            result[row, inside] += torch.linalg.solve(hessian[inside][:, inside], pull).to(result.dtype)
    return result


@contextmanager
def hessians(model: nn.Module, names: Mapping[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    """Collect ``H = 2·XᵀX`` of the linear layers while calibration rows (the paper takes 128) pass through ``model``.

    Args:
        names: The weights wanted, by name in ``model``.

    Yields:
        H by name, fp32, filled by every forward pass inside the context.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for path, module in model.named_modules():
        name = f"{path}.weight"
        if isinstance(module, nn.Linear) and name in names:

            def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                x = args[0].detach().flatten(0, -2).float()
                found[name] = found.get(name, 0.0) + 2 * x.T @ x

            handles.append(module.register_forward_pre_hook(keep))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
