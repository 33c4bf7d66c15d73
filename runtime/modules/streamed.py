"""Modules whose weights are leased while they run: singly, for a layer together, or for the parts of a long prompt."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

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
from ..tiers.placeholders import LazyWeight
from ..tiers.views import SlotViews, parameter
from .leased_parameters import LeasedParameters


class Scopes(threading.local):
    """Per thread: for every forward entered and not yet left, the modules whose weights it must give back; and the
    modules whose weights are leased for the layer around them."""

    def __init__(self) -> None:
        self.open: list[list[StreamedModule]] = []
        self.leased: set[StreamedModule] = set()

    @calls_others
    def run(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """``original``, after which weights that were fetched for it are given back."""
        self.open.append([])
        try:
            return original(*args, **kwargs)
        finally:
            for streamed in self.open.pop():
                streamed.leave()

    def clear(self) -> None:
        """The calling thread has left the model's forward."""
        self.open.clear()
        self.leased.clear()


class StreamedModule:
    """A module whose own weights are leased while it runs."""

    def __init__(
        self,
        module: nn.Module,
        path: str,
        blocks: dict[Block, dict[str, TensorSpec]],
        tier: ComputeTier,
        scopes: Scopes,
        *,
        whole: bool,
    ) -> None:
        """``blocks`` hold the tensors of these parameters. ``whole``: the weights can be leased; otherwise only rows of
        them are ever in memory."""
        self._path, self._tier, self._scopes, self._whole = path, tier, scopes, whole
        self._bridge, self._holds = tier.bridge, tier.holds
        names = [name for names in blocks.values() for name in names]
        self._parameters = LeasedParameters(module._parameters, names, self._outside)
        module._parameters = self._parameters
        self.blocks = tuple(block.id for block in blocks)
        self._views = {block.id: (tuple(names), self._views_of(names)) for block, names in blocks.items()}

    def _views_of(self, specs: dict[str, TensorSpec]) -> SlotViews[tuple[nn.Parameter, ...]]:
        # Whether a weight requires gradients is part of the bits: torch multiplies by one that does in another way (it
        # folds a batch into rows).
        grads = tuple(self._parameters.placeholders[name].requires_grad for name in specs)

        def make(tensors: tuple[torch.Tensor, ...]) -> tuple[nn.Parameter, ...]:
            return tuple(map(parameter, tensors, grads))

        return self._tier.views.of([[*specs.values()]], make, kind=grads)

    @calls_others
    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's forward, under a lease on its weights."""
        if self in self._scopes.leased:
            return self._kept(original(*args, **kwargs))
        self._enter()
        try:
            return self._kept(original(*args, **kwargs))
        finally:
            self.leave()

    def _kept(self, out: Any) -> Any:
        """``out``, copied if it is a view on the weights, which will not stay."""
        return out.clone() if isinstance(out, torch.Tensor) and self._holds(out) else out

    @calls_others
    def forward_by_row(self, reader: RowReader, original: Callable[..., Any], ids: torch.Tensor) -> Any:
        """The forward of an embedding for ``ids`` (any shape, integer): on its weight if that is in memory, else on one
        of which only these rows are filled in."""
        with reader.turn():  # a module has one weight at a time, and whole and rows differ
            if self._enter_resident():
                reader.forget()
                try:
                    return original(ids)
                finally:
                    self.leave()
            with reader.rows(ids) as weight:
                self._parameters.bind({"weight": weight})
                try:
                    return original(ids)
                finally:
                    self._parameters.unbind()

    def _enter(self) -> None:
        self.bind(dict(self._bridge.acquire(self.blocks)))

    def _enter_resident(self) -> bool:
        """Enter if the one block is in memory; whether it is."""
        slots = self._bridge.acquire_resident(self.blocks)
        if slots:
            self.bind(slots)
        return bool(slots)

    def bind(self, slots: Mapping[BlockId, Slot]) -> None:
        """Show the calling thread the weights in ``slots``, which it has leased, until it unbinds them."""
        bound: dict[str, nn.Parameter] = {}
        for block in self.blocks:
            names, views = self._views[block]
            bound.update(zip(names, views.on(slots[block]), strict=True))
        self._parameters.bind(bound)

    def unbind(self) -> None:
        """Show the calling thread placeholders again."""
        self._parameters.unbind()

    def leave(self) -> None:
        """Give back the leases of one ``_enter``."""
        self.unbind()
        self._bridge.release(*self.blocks)

    def _outside(self, name: str) -> Any:
        """The weight ``name`` as a thread sees it that has no lease on it."""
        bare = self._parameters.placeholders[name]
        if not self._scopes.open:
            return bare  # nobody computes
        return LazyWeight.of(bare, lambda: self._fetch(name))

    def _fetch(self, name: str) -> Any:
        """The weight ``name``, used outside of the module's forward: leased until the layer around it is done."""
        if not self._whole:
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but under this budget it is read by row; "
                f"raise {self._tier.budget} until the model fits, or load it with transformers instead"
            )
        self._enter()
        self._scopes.open[-1].append(self)
        return self._parameters[name]


class LayerLease:
    """One lease for all modules of a layer whose weights normally stay in memory, while they are there."""

    def __init__(self, inside: Sequence[StreamedModule], weights: ModelWeights, scopes: Scopes) -> None:
        """``inside`` are the streamed modules of the layer."""
        self._bridge, self._scopes = weights.tier.bridge, scopes
        self._inside = [leased for leased in inside if weights.elastic.issuperset(leased.blocks)]
        self._blocks = tuple(dict.fromkeys(block for leased in self._inside for block in leased.blocks))

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The layer's forward."""
        leased = self._enter()
        try:
            return self._scopes.run(original, *args, **kwargs)
        finally:
            if leased:
                self._leave()

    def _enter(self) -> bool:
        """Lease the weights for the calling thread if all of them are in memory; whether they are."""
        slots = self._bridge.acquire_resident(self._blocks, region=KEPT) if self._blocks else None
        if not slots:
            return False
        for leased in self._inside:
            leased.bind(slots)
        self._scopes.leased.update(self._inside)
        return True

    def _leave(self) -> None:
        self._scopes.leased.difference_update(self._inside)
        for leased in self._inside:
            leased.unbind()
        self._bridge.release(*self._blocks)


@contextmanager
def lease_all(inside: Sequence[StreamedModule], bridge: Bridge, scopes: Scopes) -> Iterator[bool]:
    """Lease all weights of ``inside`` for the calling thread; whether they fit together just now."""
    missing = [leased for leased in inside if leased not in scopes.leased]
    blocks = tuple(dict.fromkeys(block for leased in missing for block in leased.blocks))
    slots: dict[BlockId, Slot] = {}
    try:
        with bridge.acquire(blocks) as leases:
            slots.update(leases)  # those that came before one is refused are in it
    except UnplaceableModule:
        bridge.release(*slots)
        yield False
        return
    for leased in missing:
        leased.bind(slots)
    scopes.leased.update(missing)
    try:
        yield True
    finally:
        scopes.leased.difference_update(missing)
        for leased in missing:
            leased.unbind()
        bridge.release(*blocks)
