"""Tensors on slots of the arena: as they are stored, or as weights that know how they are encoded."""

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from ..kernels.arena import Arena
from ..kernels.formats.registry import FORMATS
from ..kernels.packed_weight import PackedWeight
from ..tiering.events import Slot
from ..tiering.store.manifest import TensorSpec
from .absent import placeholder

Made = TypeVar("Made")


def tensors_on(arena: Arena, specs: Sequence[TensorSpec], slot: Slot) -> tuple[torch.Tensor, ...]:
    """A tensor for each of ``specs``: views on the bytes of ``slot``, no copies."""
    return tuple(_tensor(arena, spec, slot) for spec in specs)


def _tensor(arena: Arena, spec: TensorSpec, slot: Slot) -> torch.Tensor:
    if spec.packing is None:
        return arena.tensor(slot.offset + spec.offset, getattr(torch, spec.dtype), spec.shape)
    return packed(spec, arena.tensor(slot.offset + spec.offset, torch.uint8, (spec.length,)))


def like(spec: TensorSpec) -> torch.Tensor:
    """What ``tensors_on`` gives for ``spec``, without numbers."""
    if spec.packing is None:
        return placeholder(getattr(torch, spec.dtype), spec.shape)
    return packed(spec, torch.empty(0, dtype=torch.uint8))


def packed(spec: TensorSpec, *planes: torch.Tensor) -> PackedWeight:
    """The weight ``spec`` that is encoded in ``planes``."""
    packing = spec.packing
    assert packing is not None
    return PackedWeight(
        planes,
        FORMATS[packing.format],
        spec.shape,
        getattr(torch, spec.dtype),
        transposed=packing.transposed,
        address=packing.address,
    )


def parameter(tensor: torch.Tensor, requires_grad: bool) -> Any:
    """``tensor`` as a module's parameter."""
    if isinstance(tensor, PackedWeight):
        return tensor.as_parameter(requires_grad)
    return nn.Parameter(tensor, requires_grad)


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
        key = kind, tuple((spec.dtype, spec.shape, spec.offset, spec.length, spec.packing) for spec in specs)
        return self._views.setdefault(key, SlotViews(self._arena, specs, make))  # type: ignore[return-value]

    def forget(self) -> None:
        """Keep nothing."""
        for views in self._views.values():
            views.forget()
