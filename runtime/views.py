"""Tensors on slots of the arena."""

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import torch

from ..kernels.arena import Arena
from ..tiering.events import Slot
from ..tiering.store.manifest import TensorSpec

Made = TypeVar("Made")


def tensors_on(arena: Arena, specs: Sequence[TensorSpec], slot: Slot) -> tuple[torch.Tensor, ...]:
    """A tensor for each of ``specs``: views on the bytes of ``slot``, no copies."""
    return tuple(arena.tensor(slot.offset + spec.offset, getattr(torch, spec.dtype), spec.shape) for spec in specs)


class SlotViews(Generic[Made]):
    """What is made of the tensors of equal blocks, once per slot: slots recur, so a hit makes nothing new."""

    def __init__(
        self, arena: Arena, specs: Sequence[TensorSpec], make: Callable[[tuple[torch.Tensor, ...]], Made]
    ) -> None:
        """``make`` takes a tensor for each of ``specs``."""
        self._arena, self._specs, self._make = arena, specs, make
        self._known: dict[int, Made] = {}

    def __getitem__(self, slot: Slot) -> Made:
        made = self._known.get(slot.offset)
        if made is None:
            made = self._known[slot.offset] = self._make(tensors_on(self._arena, self._specs, slot))
        return made

    def forget(self) -> None:
        """Keep nothing: the arena's memory goes with the last tensor on it."""
        self._known.clear()


class AllViews:
    """The views of one model: one for all blocks in which tensors of the same kinds lie at the same places."""

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._views: dict[object, SlotViews[object]] = {}

    def of(
        self, specs: Sequence[TensorSpec], make: Callable[[tuple[torch.Tensor, ...]], Made], kind: object
    ) -> SlotViews[Made]:
        """Those on blocks with tensors ``specs``; ``kind`` says in a word what ``make`` makes of them."""
        key = kind, tuple((spec.dtype, spec.shape, spec.offset) for spec in specs)
        return self._views.setdefault(key, SlotViews(self._arena, specs, make))  # type: ignore[return-value]

    def forget(self) -> None:
        """Keep nothing."""
        for views in self._views.values():
            views.forget()
