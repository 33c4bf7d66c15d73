"""Tensors on slots of an arena: as they are stored, or as weights that know their encoding."""

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import nn

from ...kernels.devices.base import DeviceArena
from ...kernels.formats.registry import FORMATS
from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.events import Slot
from ...tiering.store.bundle.manifest import TensorSpec
from ...tiering.units import BlockId
from .placeholders import placeholder

Made = TypeVar("Made")


def tensors_on(arena: DeviceArena, parts: Iterable[tuple[Sequence[TensorSpec], Slot]]) -> tuple[torch.Tensor, ...]:
    """A tensor for each name in ``parts``, which are the tensors of a block, each with its slot. They are views on the
    bytes, not copies. The bit planes of a matrix, in one slot or in several, are one weight."""
    found: dict[str, list[tuple[TensorSpec, int]]] = {}
    for specs, slot in parts:
        for spec in specs:
            found.setdefault(spec.name, []).append((spec, slot.offset + spec.offset))
    return tuple(_tensor(arena, planes) for planes in found.values())


def _tensor(arena: DeviceArena, planes: Sequence[tuple[TensorSpec, int]]) -> torch.Tensor:
    """The tensor whose ``planes`` lie at these offsets of ``arena``."""
    spec, offset = planes[0]
    if spec.packing is None:
        return arena.tensor(offset, getattr(torch, spec.dtype), spec.shape)
    return pack_weight(spec, *(arena.tensor(at, torch.uint8, (plane.length,)) for plane, at in planes))


def like(spec: TensorSpec) -> torch.Tensor:
    """A tensor like that of ``tensors_on`` for ``spec``, a first plane, without memory."""
    if spec.packing is None:
        return placeholder(getattr(torch, spec.dtype), spec.shape)
    return pack_weight(spec, torch.empty(0, dtype=torch.uint8), bare=True)


def pack_weight(spec: TensorSpec, *planes: torch.Tensor, bare: bool = False) -> PackedWeight:
    """The weight ``spec`` that is encoded in ``planes``. ``bare`` as for PackedWeight."""
    packing = spec.packing
    assert packing is not None
    return PackedWeight(
        planes,
        FORMATS[packing.format],
        spec.shape,
        getattr(torch, spec.dtype),
        transposed=packing.transposed,
        address=packing.address,
        bare=bare,
    )


def parameter(tensor: torch.Tensor, requires_grad: bool) -> Any:
    """``tensor`` as a module's parameter."""
    if isinstance(tensor, PackedWeight):
        return tensor.as_parameter(requires_grad)
    return nn.Parameter(tensor, requires_grad)


def copy_notes(old: torch.Tensor, new: torch.Tensor) -> None:
    """Give ``new`` what was noted on ``old``, as transformers notes what is initialised. What ``new`` has stays."""
    for name, value in vars(old).items():
        if name not in ("numbers", "_is_param"):  # which say what a tensor is
            vars(new).setdefault(name, value)


class SlotViews(Generic[Made]):
    """Objects made of the tensors of equal blocks, once per slot: slots recur, so a hit makes nothing new.

    Where ``of`` names the block, they are made anew for another block in the slot: torch and others remember things by
    the identity of a tensor.
    """

    def __init__(
        self,
        arena: DeviceArena,
        parts: Sequence[Sequence[TensorSpec]],
        make: Callable[[tuple[torch.Tensor, ...]], Made],
    ) -> None:
        """``parts``: the tensors of such a block, then those of each block with further planes of them. ``make`` takes
        a tensor for each name."""
        self._arena, self._parts, self._make = arena, parts, make
        self._known: dict[int, tuple[tuple[Slot, ...], BlockId | None, Made]] = {}

    def on(self, *slots: Slot, of: BlockId | None = None) -> Made:
        """The object for a block in the first of ``slots``, with further planes in the others."""
        offset, further = slots[0].offset, slots[1:]
        known = self._known.get(offset)
        # Only the latest: there are many pairs of slots.
        if known is None or known[0] != further or (of is not None and known[1] != of):
            with torch.inference_mode(False):
                made = self._make(tensors_on(self._arena, zip(self._parts, slots, strict=False)))
            known = self._known[offset] = further, of, made
        return known[2]

    def forget(self) -> None:
        """Forget all objects: the arena's memory goes with the last tensor on it."""
        self._known.clear()


class Remembering(Protocol):
    """Remembers objects on slots."""

    def forget(self) -> None:
        """Forget them."""


class AllViews:
    """The views of one tier: blocks with tensors of the same kinds at the same places share one SlotViews."""

    def __init__(self, arena: DeviceArena) -> None:
        self._arena = arena
        self._views: dict[object, SlotViews[object]] = {}
        self._users: weakref.WeakSet[Remembering] = weakref.WeakSet()

    def of(
        self, parts: Sequence[Sequence[TensorSpec]], make: Callable[[tuple[torch.Tensor, ...]], Made], kind: object
    ) -> SlotViews[Made]:
        """The views on blocks with tensors ``parts``, see SlotViews. ``kind`` names what ``make`` makes."""
        number = {spec.name: n for n, spec in enumerate(parts[0])}
        key = kind, tuple(tuple((number[spec.name], replace(spec, name="")) for spec in specs) for specs in parts)
        return self._views.setdefault(key, SlotViews(self._arena, parts, make))  # type: ignore[return-value]

    def tell(self, user: Remembering) -> None:
        """Have ``user``, which remembers some of these objects, forget them as well."""
        self._users.add(user)

    def forget(self) -> None:
        """Forget all objects."""
        for user in [*self._users]:
            user.forget()
        for views in self._views.values():
            views.forget()
