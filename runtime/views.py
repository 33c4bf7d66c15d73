"""Tensors on slots of the arena."""

from collections.abc import Sequence

import torch

from ..kernels.arena import Arena
from ..tiering.events import Slot
from ..tiering.store.manifest import TensorSpec


def tensors_on(arena: Arena, specs: Sequence[TensorSpec], slot: Slot) -> tuple[torch.Tensor, ...]:
    """A tensor for each of ``specs``: views on the bytes of ``slot``, no copies."""
    return tuple(arena.tensor(slot.offset + spec.offset, getattr(torch, spec.dtype), spec.shape) for spec in specs)


class SlotViews:
    """The tensors of equal blocks, made once per slot: slots recur, so a hit makes no new tensor."""

    def __init__(self, arena: Arena, specs: Sequence[TensorSpec]) -> None:
        self._arena, self._specs = arena, specs
        self._known: dict[int, tuple[torch.Tensor, ...]] = {}

    def __getitem__(self, slot: Slot) -> tuple[torch.Tensor, ...]:
        tensors = self._known.get(slot.offset)
        if tensors is None:
            tensors = self._known[slot.offset] = tensors_on(self._arena, self._specs, slot)
        return tensors
