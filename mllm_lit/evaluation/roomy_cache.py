"""A cache of keys and values that grows in place."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values at the beginning of memory with room for more: transformers' own copies all of them each token.

    Args:
        room: For how many tokens behind the first ones there is room; more may come.
    """

    def __init__(self, room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.room = room
        self._memory: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write (B, H, T, D) behind what there is, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, more = self.get_seq_length(), key_states.shape[-2]
        if not self._memory or start + more > self._memory[0].shape[-2]:
            old = self._filled() if start else [part[..., :0, :] for part in (key_states, value_states)]
            self._allocate(old, len(key_states), start + more + self.room)
        for memory, states in zip(self._memory, (key_states, value_states), strict=True):
            memory[..., start : start + more, :] = states
        self.keys, self.values = (memory[..., : start + more, :] for memory in self._memory)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the named rows, some of them more than once, and the room behind them."""
        if self.get_seq_length():
            self._allocate(self._filled(), len(indices), self.get_seq_length() + self.room, indices)

    def _filled(self) -> list[Tensor]:
        return [part for part in (self.keys, self.values) if part is not None]

    def _allocate(self, old: list[Tensor], rows: int, length: int, chosen: Tensor | None = None) -> None:
        self._memory = [part.new_empty(rows, part.shape[1], length, part.shape[3]) for part in old]
        found = []
        for memory, part in zip(self._memory, old, strict=True):
            view = memory[..., : part.shape[-2], :]
            if chosen is None:
                view.copy_(part)
            else:
                torch.index_select(part, 0, chosen, out=view)
            found.append(view)
        self.keys, self.values = found


def roomy_cache(config: Any, room: int) -> DynamicCache:
    """A cache for a model, with room for so many tokens behind the first ones in layers without a sliding window."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
