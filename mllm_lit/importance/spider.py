"""SPIDER (Huang et al., ICML 2025, arXiv 2411.10928): keep the updates of entries that matter more now than before."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mllm_lit.errors import check_seed, in_range
from mllm_lit.importance import kernels
from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.importance.seeding import generator
from mllm_lit.tensors import CHUNK, chunks, local

KEPT = 1 << 20
"""On a CPU, entries of a tensor whose mask is kept from the pass that sums it to the pass that applies it."""

Rows = list[Tensor]
"""One small tensor for each parameter."""


class Spider(Rule):
    """After every optimizer step, blend each weight with θ0 by its relative importance.

    Per tensor, with ``ρ(x) = σ((|x| − mean|x|) / std|x|)`` and ``G`` the signed sum of all gradients so far:
    ``m = ρ(G) / (ρ(θ0) + ρ(G))`` where ``ρ(θ0) < ρ(G)``, else 0; ``M = min(1, m / mean of the non-zero m)``;
    ``θ ← (1 − M)·θ0 + M·θ``. Nothing but ``G`` (and θ0) is stored: three passes over the data, no host synchronisation,
    and under FSDP2 two all-reduces of a few numbers per tensor.

    Defined edge cases: a constant or one-element tensor has no z-score and is never selected, so it stays at θ0; nor is
    a tensor whose gradients were all zero. An all-zero θ0 (a fresh LoRA B) has rank 0, so all its entries with a rank
    are selected. A tensor without a gradient in a step keeps its G and is blended as before. A NaN or infinite gradient
    turns its tensor NaN, as it would under the optimizer alone, instead of passing for "not selected".

    The defaults are the published rule; every other value is an ablation.

    Args:
        importance: ``weights`` or ``gradients`` compare that side with a rank of 1/2 in place of the other one.
        mask: ``soft`` is the published one; ``raw`` leaves out the division by the mean; ``hard`` is 1 where selected.
        blend: After every ``step``, or once at the ``end`` of training (:meth:`finish`).
        accumulate: The ``signed`` sum of gradients, or the sum of their ``absolute`` values.
        gradient: As the optimizer saw it (``clipped``), or as :meth:`before_step` finds it (``unclipped``; the loop
            has to call that itself before clipping, see ``before_step="caller"`` of :meth:`attach`). The latter is
            copied until the step is taken, since a gradient scaler may skip it.
        decay: Factor on G before each sum; 1 is the plain sum.
        accumulator: dtype of G. ``bfloat16`` halves its memory by stochastic rounding: an approximation.
        seed: Of that rounding; ``None`` takes the run's seed.
        compile: Fuse each pass with ``torch.compile``. ``None`` does so on CUDA; on a CPU the chunked passes are as
            fast, and elsewhere eager ones are the safe choice.
        **shared: Of θ0; see :class:`Rule`.
    """

    needs_reference = True

    def __init__(
        self,
        importance: Literal["both", "weights", "gradients"] = "both",
        mask: Literal["soft", "raw", "hard"] = "soft",
        blend: Literal["step", "end"] = "step",
        accumulate: Literal["signed", "absolute"] = "signed",
        gradient: Literal["clipped", "unclipped"] = "clipped",
        decay: float = 1.0,
        accumulator: Literal["float32", "bfloat16"] = "float32",
        seed: int | None = None,
        compile: bool | None = None,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.importance = importance
        self.mask_form = mask
        self.blend = blend
        self.absolute = accumulate == "absolute"
        self.unclipped = gradient == "unclipped"
        self.decay = in_range("importance.decay", decay, high=1, above=0)
        self.dtype = torch.float32 if accumulator == "float32" else torch.bfloat16
        self.seed = check_seed("importance.seed", seed)
        self.compile = compile
        self._work_by_shape: dict[torch.Size, kernels.Work] = {}

    def start(self) -> None:
        if self.unclipped and self.before_step_by == "hook":
            raise RuleError(
                "gradient: unclipped reads gradients before they are clipped, which a hook of the optimizer cannot. "
                'Attach with before_step="caller" and call rule.before_step() between backward and clipping.'
            )
        self.rows = {name: row for row, name in enumerate(self.parameters)}
        self.device = local(next(iter(self.parameters.values()))).device
        self.fused = self.device.type == "cuda" if self.compile is None else self.compile
        self.cached = (
            not self.fused and self.device.type == "cpu"
        )  # chunks are computed in memory that stays in a cache
        if self.fused:
            _check_compiler(self.device)
        self._accumulate = _compiled(kernels.accumulate, self.fused)
        self._accumulate_rounded = _compiled(kernels.accumulate_rounded, self.fused)
        self._mask_sums = _compiled(kernels.mask_sums, self.fused)
        self._blend = _compiled(kernels.blend, self.fused)
        counts = [parameter.numel() for parameter in self.parameters.values()]
        self.counts = torch.tensor(counts, dtype=torch.float64, device=self.device)
        self.buffers["gradients"] = self.like_parameters(self.dtype)
        self.generator = generator(self.seed, "spider", self.device)
        self._unclipped: dict[str, Tensor | None] = {}
        self._moments: Tensor | None = None
        self._kept: Tensor | None = None
        self._tables: tuple[Rows, Rows] | None = None
        sums = torch.stack([self._sum(kernels.moments, self._theta0(name)) for name in self.parameters])
        neutral = self.importance == "gradients"
        self.weight_scales = self._scales(sums, kernels.LOWEST, kernels.HIGHEST, neutral)

    @torch.no_grad()
    def before_step(self) -> None:
        if self.unclipped:
            found = {name: self.gradient(name) for name in self.parameters}
            self._unclipped = {name: None if part is None else part.clone() for name, part in found.items()}

    def after_step(self) -> None:
        self._add_gradients()
        if self.blend == "step":
            self._apply()

    @torch.no_grad()
    def finish(self) -> None:
        if self.blend == "end":
            self._apply()

    @torch.no_grad()
    def mask(self, name: str) -> Tensor:
        scales, factors = self._tables = self._tables or self._table()
        mask = torch.empty_like(self._total(name), dtype=torch.float32)
        for out, base, total in chunks(mask, self._theta0(name), self._total(name)):
            row = self.rows[name]
            args = (base.to(self.device), total, self.weight_scales[row], scales[row], factors[row])
            out.copy_(kernels.final_mask(*args, self.mask_form == "hard"))
        return mask

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        super().load_state_dict(state)
        self.generator.set_state(state["generator"].cpu())
        self._moments = self._tables = None

    def _add_gradients(self) -> None:
        """Pass A: G += g. The sums over the new G are kept for the mask that follows."""
        if self.unclipped and not self._unclipped:
            raise RuleError("gradient: unclipped, but before_step() was not called between backward and this step.")
        rows = []
        for name in self.parameters:
            gradient = self._unclipped[name] if self.unclipped else self.gradient(name)
            if gradient is None:
                rows.append(self._sum(kernels.moments, self._total(name)))
                continue
            row = torch.zeros(2, dtype=torch.float64, device=self.device)
            for total, part in chunks(self._total(name), gradient):
                if self.dtype == torch.float32:
                    row += self._accumulate(total, part, self.decay, self.absolute, self._work(total))
                else:
                    noise = torch.empty(total.shape, dtype=torch.int32, device=self.device)
                    noise.random_(0, 1 << 16, generator=self.generator)
                    row += self._accumulate_rounded(total, part, self.decay, self.absolute, noise)
            rows.append(row)
        self._moments = torch.stack(rows)
        self._tables = None
        self._unclipped = {}

    def _apply(self) -> None:
        """Pass C: the blend."""
        small = self._small() if self._tables is None else ()
        scales, factors = self._tables = self._tables or self._table(small)
        for name, parameter in self.parameters.items():
            row = self.rows[name]
            if name in small:
                factors[row] = self._sum_and_apply(name, self.weight_scales[row], scales[row])
                continue
            for weight, base, total in chunks(local(parameter), self._theta0(name), self._total(name)):
                base = base.to(self.device, non_blocking=True)
                args = (weight, base, total, self.weight_scales[row], scales[row], factors[row])
                self._blend(*args, self.mask_form == "hard", self._work(total))

    def _small(self) -> Collection[str]:
        """Tensors for which passes B and C are one: whole on this process, and small enough to keep a mask."""
        if not self.cached or self.sum_shards.groups or self.mask_form != "soft":
            return ()
        shapes = {name: self._total(name).shape for name in self.parameters}
        return {name for name, s in shapes.items() if s.numel() <= KEPT and s[1:].numel() <= CHUNK["cpu"]}

    def _sum_and_apply(self, name: str, weights: Tensor, gradients: Tensor) -> Tensor:
        """Passes B and C of a small tensor, whose raw mask is computed once; returns its factor."""
        if self._kept is None:
            self._kept = torch.empty(KEPT)
        base, total = self._theta0(name), self._total(name)
        masks = self._kept[: total.numel()].view(total.shape)
        sums = torch.zeros(2, dtype=torch.float64)
        for before, part, mask in chunks(base, total, masks):
            work = self._work(part)
            assert work is not None
            work = (work[0], mask, work[2], work[3])  # where the raw mask is left
            sums += kernels.mask_sums(before, part, weights, gradients, work)
        factor = _factors(*sums)
        for weight, before, mask in chunks(local(self.parameters[name]), base, masks):
            work = self._work(mask)
            assert work is not None
            kernels.apply_mask(weight, work[3].copy_(before), mask.mul_(factor).clamp_max_(1.0))
        return factor

    def _table(self, leave_out: Collection[str] = ()) -> tuple[Rows, Rows]:
        """Pass B. For each tensor the scales of G (2,), and 1 / mean of the non-zero entries of its raw mask.

        The factors of tensors in ``leave_out`` are 1.
        """
        sums = self._moments
        if sums is None:
            sums = torch.stack([self._sum(kernels.moments, self._total(name)) for name in self.parameters])
        scales = self._scales(sums, kernels.LOWEST, kernels.LOWEST, self.importance == "weights")
        self._moments = None
        if self.mask_form != "soft":
            return scales, _rows(torch.ones(len(scales), device=self.device))
        rows = []
        for name, row in self.rows.items():
            args = self.weight_scales[row], scales[row]
            rows.append(
                torch.zeros(2, dtype=torch.float64)
                if name in leave_out
                else self._sum(self._mask_sums, self._theta0(name), self._total(name), extra=args)
            )
        return scales, _rows(_factors(*self.sum_shards(torch.stack(rows)).unbind(1)))

    def _scales(self, sums: Tensor, zero: tuple[float, float], flat: tuple[float, float], neutral: bool) -> Rows:
        scales = kernels.scales(self.sum_shards(sums), self.counts, zero, flat)
        if neutral:
            scales = torch.where(torch.isfinite(scales).all(dim=1, keepdim=True), kernels.NEUTRAL, scales)
        return _rows(scales)

    def _sum(self, function: Callable[..., Tensor], *tensors: Tensor, extra: tuple[Tensor, ...] = ()) -> Tensor:
        """Of ``function`` over the chunks of ``tensors``: fp64 (2,)."""
        result = torch.zeros(2, dtype=torch.float64, device=self.device)
        for parts in chunks(*tensors):
            moved = (part.to(self.device, non_blocking=True) for part in parts)
            result += function(*moved, *extra, self._work(parts[0]))
        return result

    def _work(self, part: Tensor) -> kernels.Work | None:
        """Memory for the kernels, one set for all chunks; only where they run eagerly on a CPU."""
        if not self.cached or part.numel() > CHUNK["cpu"]:
            return None
        if part.shape not in self._work_by_shape:
            if not self._work_by_shape:
                self._memory = torch.empty(4, CHUNK["cpu"])
            one, two, three, four = self._memory[:, : part.numel()].view(4, *part.shape)
            self._work_by_shape[part.shape] = (one, two, three, four)
        return self._work_by_shape[part.shape]

    def _theta0(self, name: str) -> Tensor:
        assert self.reference is not None
        return self.reference[name]

    def _total(self, name: str) -> Tensor:
        return local(self.buffers["gradients"][name])


def _rows(table: Tensor) -> Rows:
    """Each in memory of its own: the offset of a view would be compiled in."""
    return [row.clone() for row in table]


def _factors(total: Tensor, count: Tensor) -> Tensor:
    """1 / mean of the non-zero entries. Where none is selected the mask is 0 whatever the factor."""
    return torch.where(count == 0, 1.0, count / total).float()


def _check_compiler(device: torch.device) -> None:
    """Raises :class:`RuleError` where ``torch.compile`` finds no working tools, before the first step needs them."""
    try:
        torch.compile(lambda values: values + 1)(torch.zeros(2, device=device))
    except Exception as error:
        raise RuleError(
            f"SPIDER's passes are compiled on {device}, and torch.compile failed there: {error} Install what it asks "
            "for (a C compiler; Triton on CUDA), or set importance.init_args.compile to false: slower, same weights."
        ) from error


def _compiled(function: Callable[..., Any], wanted: bool) -> Callable[..., Any]:
    """One graph for all sizes. Tensors are passed without the base that they view, whose shape would be compiled in."""
    if not wanted:
        return function
    compiled = torch.compile(function, dynamic=True)
    return lambda *args: compiled(*(arg.data if isinstance(arg, Tensor) else arg for arg in args))
