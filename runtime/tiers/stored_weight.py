"""The numbers of one weight of a bundle: in a slot, read by row, or, once somebody changed them, in a copy."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from ...kernels.memory.arena import ArenaClosed
from ...kernels.weights.packed_weight import PackedWeight
from ...tiering.errors import Closed, UnplaceableModule
from ...tiering.events import Slot
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import BlockId
from .compute_tier import ComputeTier
from .embedding_rows import RowReader
from .kept_copies import KeptCopies
from .model_weights import ModelWeights
from .streamed_weight import StreamedWeight
from .views import copy_notes, tensors_on

_ALIGNMENT = 64
_CLOSED = "this model was closed; load it again to use it"


class ChangeableNumbers:
    """Numbers that get memory of their own when they are changed, and the places where modules have the weight.

    Subclasses say how to lease them as they are stored.
    """

    def __init__(self, name: str, tier: ComputeTier, copies: KeptCopies, bare: torch.Tensor) -> None:
        """Those of the weight ``name``, which is computed in ``tier``. ``bare`` is what transformers built in its
        place. ``copies`` counts the memory of changed ones."""
        self.name, self._tier, self._copies = name, tier, copies
        self._own: nn.Parameter | None = None
        self._homes: list[tuple[dict[str, Any], str]] = []
        parameter = isinstance(bare, nn.Parameter)
        grads = bare.requires_grad and parameter
        self.weight = StreamedWeight(
            self, tuple(bare.shape), bare.dtype, tier.compute, requires_grad=grads, is_parameter=parameter
        )
        """The weight as everybody sees it."""
        copy_notes(bare, self.weight)

    def lives_in(self, parameters: dict[str, Any], name: str) -> None:
        """A module has the weight in its ``parameters``, as ``name``."""
        self._homes.append((parameters, name))

    def present(self) -> torch.Tensor | None:
        """See Numbers."""
        return self._own

    @contextmanager
    def leased(self, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """See Numbers. Raises Closed, and UnplaceableModule where they cannot be in memory as a whole."""
        raise NotImplementedError

    def own(self) -> None:
        """See Numbers."""
        if self._own is not None:
            return
        self._copies.keep(self.name, self.weight.nbytes)
        try:
            with torch.inference_mode(False), torch.no_grad(), self.leased(None) as numbers:
                copy = numbers.decoded() if isinstance(numbers, PackedWeight) else _copied(numbers)
        except BaseException:
            self._copies.keep(self.name, -self.weight.nbytes)
            raise
        self._settle(copy)

    def replace(self, numbers: torch.Tensor) -> None:
        """See Numbers."""
        before = 0 if self._own is None else self._own.nbytes
        self._copies.keep(self.name, numbers.nbytes - before)
        if self._own is None:
            self._settle(numbers.detach())
        else:
            self._own.data = numbers

    def _settle(self, numbers: torch.Tensor) -> None:
        """From now on these are the numbers, wherever the weight is."""
        self._own = nn.Parameter(numbers.detach(), self.weight.wants_gradients)
        copy_notes(self.weight, self._own)
        for parameters, name in self._homes:
            held = dict.get(parameters, name)
            if held is self.weight or getattr(held, "stand_in", None) is self.weight:
                parameters[name] = self._own

    def note_gradients(self) -> None:
        """See Numbers."""
        packed: PackedWeight | None = None  # one for all modules that share the weight
        for parameters, name in self._homes:
            held = dict.get(parameters, name)
            if held is self.weight:
                parameters[name] = self.weight  # whoever computes on it looks again
            elif isinstance(held, PackedWeight) and held.stand_in is self.weight:
                if packed is None:
                    packed = held.as_parameter(self.weight.wants_gradients)
                    packed.stand_in = self.weight
                parameters[name] = packed


def _copied(numbers: torch.Tensor) -> torch.Tensor:
    """A copy of ``numbers``, contiguous, at an address of the same alignment: the bits of products depend on it."""
    room = torch.empty(numbers.nbytes + _ALIGNMENT, dtype=torch.uint8, device=numbers.device)
    start = (numbers.data_ptr() - room.data_ptr()) % _ALIGNMENT
    copy = room[start : start + numbers.nbytes].view(numbers.dtype).view(numbers.shape)
    return copy.copy_(numbers)


class StoredNumbers(ChangeableNumbers):
    """Numbers in a dense block, which stays in its slot, or is leased, or is read by row."""

    def __init__(self, block: Block, spec: TensorSpec, weights: ModelWeights, bare: torch.Tensor) -> None:
        """The tensor ``spec`` of ``block``; ``bare`` as for ChangeableNumbers."""
        super().__init__(spec.name, weights.tier, weights.copies, bare)
        self._weights, self._block, self._spec = weights, block.id, spec

    @contextmanager
    def leased(self, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """See ChangeableNumbers."""
        weights = self._weights
        weights.tier.bridge.check_open()
        try:
            with ExitStack() as leases:
                if self._block in weights.pinned:
                    yield self._on(weights.pinned[self._block])
                    return
                reader = weights.rows.get(self._block)
                by_row = reader is not None and (rows is not None or self._block not in weights.elastic)
                slot = leases.enter_context(self._slot(only_resident=by_row))
                if slot is not None:
                    yield self._on(slot)
                elif reader is not None:
                    yield leases.enter_context(self._by_row(reader, rows))
        except ArenaClosed as error:
            raise Closed(_CLOSED) from error

    def _on(self, slot: Slot) -> torch.Tensor:
        with torch.inference_mode(False):
            (tensor,) = tensors_on(self._tier.arena, [((self._spec,), slot)])
        return tensor

    @contextmanager
    def _slot(self, *, only_resident: bool) -> Iterator[Slot | None]:
        bridge, blocks = self._tier.bridge, (self._block,)
        slots: Mapping[BlockId, Slot] | None
        slots = bridge.acquire_resident(blocks) if only_resident else dict(bridge.acquire(blocks))
        try:
            yield slots[self._block] if slots else None
        finally:
            if slots:
                bridge.release(self._block)

    @contextmanager
    def _by_row(self, reader: RowReader, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """The numbers in host memory, or copied from there to a device, of ``rows`` or all."""
        if rows is not None:
            with reader.host_rows(rows) as numbers:
                yield numbers.to(self._tier.compute)
            return
        with self._copies.room(self.weight.nbytes) as fits:
            if not fits:
                raise self._copies.refuse(
                    UnplaceableModule(
                        f"{self.name} is used as a whole, but under this budget it is read by row; raise "
                        f"{self._tier.budget} until the model fits, or load it with transformers instead"
                    )
                )
            with reader.host_rows(torch.arange(self.weight.shape[0])) as numbers:
                yield numbers.to(self._tier.compute)


class ClosedNumbers:
    """The numbers of a closed model's weight ``name``: nobody gets them."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextmanager
    def leased(self, rows: torch.Tensor | None) -> Iterator[torch.Tensor]:
        """See Numbers."""
        self.own()
        yield torch.empty(0)

    def present(self) -> torch.Tensor | None:
        """See Numbers."""
        return None

    def own(self) -> None:
        """See Numbers."""
        raise Closed(_CLOSED)

    def replace(self, numbers: torch.Tensor) -> None:
        """See Numbers."""
        self.own()

    def note_gradients(self) -> None:
        """See Numbers."""
