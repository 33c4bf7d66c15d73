"""Modules whose weights are leased while they run: singly, for a layer together, or for the parts of a long prompt."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from ...kernels.process.interrupts import calls_others
from ...tiering.errors import UnplaceableModule
from ...tiering.events import Slot
from ...tiering.planner.regions import KEPT
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import BlockId
from ..tiers.bridge import Bridge
from ..tiers.compute_tier import ComputeTier
from ..tiers.embedding_rows import RowReader
from ..tiers.model_weights import ModelWeights
from ..tiers.streamed_weight import StreamedWeight
from ..tiers.views import SlotViews, parameter
from .few_rows import OnWeights
from .leased_parameters import LeasedParameters
from .scopes import Leased, Scopes, Slots, Views


class StreamedModule:
    """A module whose own weights are leased while it runs."""

    def __init__(
        self,
        module: nn.Module,
        blocks: Mapping[Block, Mapping[str, TensorSpec]],
        stored: Mapping[str, StreamedWeight],
        tier: ComputeTier,
        scopes: Scopes,
        on_weights: OnWeights | None = None,
    ) -> None:
        """``blocks`` hold the tensors of these parameters, which are ``stored`` as everybody sees them. ``on_weights``
        computes what the module's forward does."""
        self._module, self._tier, self._scopes, self._all, self._stored = module, tier, scopes, blocks, stored
        self._on_weights = on_weights
        self._bridge, self._holds = tier.bridge, tier.holds
        self.blocks: tuple[BlockId, ...] = ()
        """The blocks to lease: those of weights that nobody changed."""
        self._views: Views = {}
        self._replaced: tuple[str, ...] = ()
        self._watchers: list[Callable[[], None]] = []
        self._parameters = LeasedParameters(module._parameters, stored, self._look_again)
        module._parameters = self._parameters
        self._look_again()

    def watch(self, watcher: Callable[[], None]) -> None:
        """Have ``watcher`` called when ``blocks`` change."""
        self._watchers.append(watcher)

    def _look_again(self) -> None:
        """Somebody may have put another weight in the place of a stored one, or changed whether it wants gradients."""
        self._replaced = tuple(name for name in self._stored if not self._parameters.is_stored(name))
        used = {block: names for block, names in self._all.items() if not {*names}.issubset(self._replaced)}
        self._views = {block.id: (tuple(names), self._views_of(names)) for block, names in used.items()}
        self.blocks = tuple(self._views)
        for watcher in self._watchers:
            watcher()

    def _views_of(self, specs: Mapping[str, TensorSpec]) -> SlotViews[tuple[nn.Parameter, ...]]:
        # Whether a weight requires gradients is part of the bits: torch multiplies by one that does in another way (it
        # folds a batch into rows).
        grads = tuple(self._stored[name].wants_gradients for name in specs)

        def make(tensors: tuple[torch.Tensor, ...]) -> tuple[nn.Parameter, ...]:
            return tuple(map(parameter, tensors, grads))

        return self._tier.views.of([[*specs.values()]], make, kind=grads)

    @calls_others
    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's forward, under a lease on its weights."""
        around = self._scopes.leased.get(self)
        if around is not None:
            weights = around.weights if around.views is self._views else self.lease_of(around.slots).weights
            return self._compute(weights, original, args, kwargs)
        if not self._scopes.inside:
            return self._scopes.run(self._module, self.forward, original, *args, **kwargs)
        blocks = self.blocks
        if not blocks:
            return original(*args, **kwargs)
        here = self._bridge.lease_resident(blocks)
        slots = dict(self._bridge.acquire(blocks) if here is None else zip(blocks, here, strict=True))
        try:
            return self._compute(self.lease_of(slots).weights, original, args, kwargs)
        finally:
            self._bridge.release(*blocks)

    @calls_others
    def _compute(
        self,
        weights: Mapping[str, nn.Parameter],
        original: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """The module's forward by ``weights``, which the calling thread has leased."""
        if self._on_weights is not None and len(args) == 1 and not kwargs:
            out = self._on_weights(args[0], weights)
            if out is not None:
                return out
        try:
            self._parameters.bind(weights)
            return self._kept(original(*args, **kwargs), weights)
        finally:
            self._parameters.unbind()

    def _kept(self, out: Any, bound: Mapping[str, nn.Parameter]) -> Any:
        """``out``, copied if it is a view on the weights ``bound``, which will not stay; nor do changes to them."""
        if self._tier.native:  # a device's weights share one version, that of its arena
            for name, weight in bound.items():
                if type(weight) is nn.Parameter and weight._version:
                    self._stored[name].numbers.own()
        return out.clone() if isinstance(out, torch.Tensor) and self._holds(out) else out

    @calls_others
    def forward_by_row(self, reader: RowReader, original: Callable[..., Any], ids: torch.Tensor) -> Any:
        """The forward of an embedding for ``ids`` (any shape, integer): on its weight if that is in memory, else on one
        of which only these rows are filled in."""
        if not self._scopes.inside:
            return self._scopes.run(self._module, self.forward_by_row, reader, original, ids)
        blocks = self.blocks
        if not blocks:
            return original(ids)
        with reader.turn():  # a module has one weight at a time, and whole and rows differ
            slots = self._bridge.acquire_resident(blocks)
            if slots:
                reader.forget()
                try:
                    self.bind(slots)
                    return original(ids)
                finally:
                    self._leave(blocks)
            with reader.rows(ids) as weight:
                try:
                    self._parameters.bind({"weight": weight})
                    return original(ids)
                finally:
                    self._parameters.unbind()

    def bind(self, slots: Slots) -> Mapping[str, nn.Parameter]:
        """Show the calling thread the weights in ``slots``, which it has leased, until it unbinds them. Returns
        them."""
        weights = self.lease_of(slots).weights
        self._parameters.bind(weights)
        return weights

    def lease_of(self, slots: Slots) -> Leased:
        """The weights in ``slots``, which the calling thread has leased."""
        weights: dict[str, nn.Parameter] = {}
        every = self._views
        for block, (names, views) in every.items():
            if block in slots:  # another thread may have put a weight back meanwhile
                weights.update(zip(names, views.on(slots[block], of=block), strict=True))
        for name in self._replaced:
            weights.pop(name, None)
        return Leased(slots, every, weights)

    def _leave(self, blocks: Sequence[BlockId]) -> None:
        self._parameters.unbind()
        self._bridge.release(*blocks)


class _Last(NamedTuple):
    """The last lease for a layer: its modules, their slots, and the weights that were found there."""

    inside: Sequence[StreamedModule]
    slots: Sequence[Slot]
    leases: Mapping[StreamedModule, Leased]


class LayerLease:
    """One lease for all modules of a layer whose weights normally stay in memory, while they are there."""

    def __init__(
        self, layer: nn.Module, inside: Sequence[StreamedModule], weights: ModelWeights, scopes: Scopes
    ) -> None:
        """``inside`` are the streamed modules of ``layer``."""
        self._module = layer
        self._bridge, self._scopes, self._elastic = weights.tier.bridge, scopes, weights.elastic
        self._last: _Last | None = None
        weights.tier.views.tell(self)
        self._all = inside
        for leased in inside:
            leased.watch(self._look_again)
        self._look_again()

    def _look_again(self) -> None:
        self._inside = [leased for leased in self._all if leased.blocks and self._elastic.issuperset(leased.blocks)]
        self._blocks = _blocks_of(self._inside)

    def forget(self) -> None:
        """See Remembering."""
        self._last = None

    @calls_others
    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The layer's forward."""
        if not self._scopes.inside:
            return self._scopes.run(self._module, self.forward, original, *args, **kwargs)
        if self._scopes.shared:  # each module leases for all strands that wait there
            return original(*args, **kwargs)
        inside, blocks = self._inside, self._blocks
        slots = self._bridge.acquire_resident(blocks, region=KEPT) if blocks else None
        if not slots:
            return original(*args, **kwargs)
        leased = self._scopes.leased
        try:
            leased.update(self._leases(inside, slots).items())
            return original(*args, **kwargs)
        finally:
            for each in inside:
                leased.pop(each, None)
            self._bridge.release(*blocks)

    def _leases(self, inside: Sequence[StreamedModule], slots: Slots) -> Mapping[StreamedModule, Leased]:
        """The weights of ``inside`` in ``slots``: those of the last time, if they lie in the same."""
        last = self._last
        there = [*slots.values()]
        if last is None or last.inside is not inside or last.slots != there:
            last = self._last = _Last(inside, there, {module: module.lease_of(slots) for module in inside})
        return last.leases


@contextmanager
def lease_all(inside: Sequence[StreamedModule], bridge: Bridge, scopes: Scopes) -> Iterator[bool]:
    """Lease all weights of ``inside`` for the calling thread; whether they fit together just now."""
    missing = [leased for leased in inside if leased.blocks and leased not in scopes.leased]
    blocks = _blocks_of(missing)
    slots: dict[BlockId, Slot] = {}
    try:
        with bridge.acquire(blocks) as leases:
            slots.update(leases)  # those that came before one is refused are in it
    except UnplaceableModule:
        bridge.release(*slots)
        yield False
        return
    try:
        scopes.leased.update((leased, leased.lease_of(slots)) for leased in missing)
        with scopes.entered():
            yield True
    finally:
        for leased in missing:
            scopes.leased.pop(leased, None)
        bridge.release(*blocks)


def _blocks_of(inside: Sequence[StreamedModule]) -> tuple[BlockId, ...]:
    return tuple(dict.fromkeys(block for leased in inside for block in leased.blocks))
