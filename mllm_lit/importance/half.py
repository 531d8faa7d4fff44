"""Half fine-tuning (Hui et al., ACL 2025, arXiv 2404.18466)."""

import torch
from torch import Tensor

from mllm_lit.errors import check_seed
from mllm_lit.importance.base import Rule
from mllm_lit.importance.seeding import generator
from mllm_lit.tensors import local


class HalfFineTuning(Rule):
    """Train half of the parameter matrices of every category, another half in each epoch.

    A category is what sits under one parent: the four attention projections of a block, the three matrices of its MLP,
    its norms, the layers of the connector. Of an odd number, alternating categories train the larger and the smaller
    half, so that over the model it is half. A module's weight and bias go together. Frozen ones get no gradient at
    all, so neither weight decay nor old moments move them, and gradient clipping does not see them.

    Args:
        reselect: Draw again at every epoch, as in the paper's stages; otherwise once.
        seed: ``None`` takes the run's seed; with the epoch it determines the draw.
    """

    def __init__(self, reselect: bool = True, seed: int | None = None) -> None:
        super().__init__()
        self.reselect, self.seed = reselect, check_seed("importance.seed", seed)

    def start(self) -> None:
        # Fixed here, since a loop may reseed torch at every batch.
        self.base_seed = torch.initial_seed() if self.seed is None else self.seed
        self.on_epoch_start(0)

    def on_epoch_start(self, epoch: int) -> None:
        categories: dict[str, dict[str, list[str]]] = {}
        for name in self.parameters:
            module = name.rpartition(".")[0] or name
            categories.setdefault(module.rpartition(".")[0], {}).setdefault(module, []).append(name)
        draw = generator(self.base_seed, f"half {epoch if self.reselect else 0}")
        larger = bool(torch.randint(2, (), generator=draw))
        self.trained: set[str] = set()
        for modules in categories.values():
            names = list(modules.values())
            order = torch.randperm(len(names), generator=draw).tolist()
            count, odd = divmod(len(names), 2)
            if odd:
                count, larger = count + larger, not larger
            self.trained.update(name for place in order[:count] for name in names[place])

    def before_step(self) -> None:
        for name, parameter in self.parameters.items():
            if name not in self.trained:
                parameter.grad = None

    def mask(self, name: str) -> Tensor:
        return torch.full_like(local(self.parameters[name]), float(name in self.trained), dtype=torch.float32)
