"""LoRASculpt (Liang et al., CVPR 2025, arXiv 2503.16843): sparse LoRA factors that avoid the base's large weights."""

import torch
from torch import Tensor

from mllm_lit.errors import in_range
from mllm_lit.importance.base import Rule, RuleError
from mllm_lit.select import select_top
from mllm_lit.tensors import ShardSums, local, sharded_dims


class LoRASculpt(Rule):
    """Prune both LoRA factors once, early in training, and keep them sparse; penalise updates of important weights.

    After ``prune_at`` steps each factor keeps its largest entries, the others are zero from then on. Until and after
    then a regulariser ``strength · mean over layers of ‖tanh(|1 / log(|W| / ‖W‖)|) ⊙ BA‖`` is added to the loss (by its
    gradient, once per optimizer step); its weight grows with |W|.

    Args:
        trained: Share of each factor that survives.
        prune_at: Optimizer steps before pruning.
        strength: Of the regulariser; 0 leaves it out, and with it the need for the base weights.
    """

    def __init__(self, trained: float = 0.1, prune_at: int = 100, strength: float = 1e-3) -> None:
        super().__init__()
        self.share = in_range("importance.trained", trained, 0, 1)
        self.prune_at = in_range("importance.prune_at", prune_at, 0)
        self.strength = in_range("importance.strength", strength, 0)

    def start(self) -> None:
        """Pair the factors.

        Raises:
            RuleError: Nothing is a LoRA factor, or base weights are missing or sharded.
        """
        self.pairs: list[tuple[str, str, Tensor | None]] = []
        for name in self.parameters:
            before, found, after = name.partition(".lora_A.")
            partner = f"{before}.lora_B.{after}"
            if not found or partner not in self.parameters:
                continue
            base = self.frozen.get(f"{before}.base_layer.weight") if self.strength else None
            if self.strength and base is None:
                raise RuleError(
                    f"The base weight of {name!r} is not among the parameters given to attach(): pass "
                    "model.named_parameters() whole, frozen ones too, or set strength: 0."
                )
            if base is not None and not base.is_floating_point():
                raise RuleError(
                    f"The base weight of {name!r} is quantised ({base.dtype}), so its large entries cannot be told: "
                    "load the backbone without quantization, or set strength: 0."
                )
            if self.strength and any(sharded_dims(self.parameters[n]) is not None for n in (name, partner)):
                raise RuleError("The regulariser multiplies whole factors: use DDP, or set strength: 0.")
            self.pairs.append((name, partner, base))
        if not self.pairs:
            raise RuleError(
                "LoRASculpt prunes LoRA factors and none of the trainable tensors is one; use adapter LoRA."
            )
        factors = {name: self.parameters[name] for pair in self.pairs for name in pair[:2]}
        self.factors, self.sum_factors = factors, ShardSums(list(factors.values()))

    @torch.no_grad()
    def before_step(self) -> None:
        if not self.strength:
            return
        for a, b, base in self.pairs:
            assert base is not None
            weight, down, up = conflict(base), local(self.parameters[a]), local(self.parameters[b])
            product = weight * (up @ down).float()
            norm = product.norm()
            # d‖P‖ = ⟨P, dP⟩ / ‖P‖, and 0 where BA is still 0.
            slope = (weight * product / norm.clamp_min(1e-12)).to(down.dtype)
            for name, term in ((a, up.T @ slope), (b, slope @ down.T)):
                gradient = self.gradient(name)
                if gradient is not None:
                    gradient.add_(term, alpha=self.strength / len(self.pairs))

    def after_step(self) -> None:
        if self.steps + 1 == self.prune_at:
            kept = select_top(self.factors, lambda name: local(self.factors[name]).abs(), self.share, self.sum_factors)
            self.buffers["kept"] = {
                name: torch.zeros_like(parameter, dtype=torch.bool, requires_grad=False)
                for name, parameter in self.factors.items()
            }
            for name, mask in kept.items():
                local(self.buffers["kept"][name]).copy_(mask)
        for name, keep in self.buffers.get("kept", {}).items():
            local(self.parameters[name]).mul_(local(keep))

    @torch.no_grad()
    def penalty(self) -> Tensor | None:
        if not self.strength:
            return None
        norms = [
            (conflict(base) * (local(self.parameters[b]) @ local(self.parameters[a])).float()).norm()
            for a, b, base in self.pairs
            if base is not None
        ]
        return torch.stack(norms).mean() * self.strength

    def mask(self, name: str) -> Tensor:
        kept = self.buffers.get("kept", {}).get(name)
        return (
            torch.ones_like(local(self.parameters[name]), dtype=torch.float32) if kept is None else local(kept).float()
        )


def conflict(base: Tensor) -> Tensor:
    """``tanh(|1 / log(|W| / ‖W‖)|)`` in fp32: near 0 for small weights, near 1 for one that carries the matrix."""
    size = local(base).float().abs()
    return (size / size.norm()).log().reciprocal().abs().tanh()
