"""Attaches a transformers model to an engine: every module finds its weights in memory while it runs.

No code per architecture. What stays in memory is bound once. A module whose weights are streamed gets a forward that
leases them first and gives them back after. Experts go through runtime/experts.py, embeddings read by row through
runtime/rows.py. The outermost forward tells the planner where each token begins and ends.
"""

import functools
import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from ..tiering.errors import UnplaceableModule
from ..tiering.events import Slot
from ..tiering.store.manifest import Block, TensorSpec
from ..tiering.units import BlockId
from .absent import Absent
from .engine import Engine
from .experts import IMPLEMENTATION, StreamedExperts, Trust
from .layout import is_experts, layer_of
from .linear import few_rows
from .prediction import prediction
from .rows import RowReader
from .views import SlotViews, tensors_on


def attach(model: nn.Module, engine: Engine) -> None:
    """Bind the weights of ``model``, built on placeholders, to the blocks of ``engine``, whose ``load`` has run."""
    _Attachment(model, engine).attach()


class _Scopes(threading.local):
    """Per thread: for every forward entered and not yet left, the modules whose weights it must give back."""

    def __init__(self) -> None:
        self.open: list[list[_Streamed]] = []


class _Attachment:
    def __init__(self, model: nn.Module, engine: Engine) -> None:
        self._model, self._engine = model, engine
        tied = engine.bundle.manifest.tied
        self._home = {
            spec.name: (block, spec)
            for block in engine.bundle.manifest.blocks
            if block.id.kind == "dense"
            for spec in block.tensors
        }
        self._home |= {name: self._home[stored] for name, stored in tied.items() if stored in self._home}
        self._experts: dict[str, list[Block]] = {}
        for block in engine.bundle.manifest.blocks:
            if block.id.kind == "expert":
                self._experts.setdefault(block.id.module, []).append(block)
        self._bound: dict[tuple[BlockId, str], Any] = {}
        self._scopes = _Scopes()
        self._streamed_experts: dict[str, StreamedExperts] = {}
        self._trust = Trust()
        self._views: dict[Any, SlotViews] = {}

    def attach(self) -> None:
        streamed: list[str] = []
        for path, module in self._model.named_modules():
            if is_experts(module):
                self._attach_experts(path, module)
            if self._attach_dense(path, module):
                streamed.append(path)
        self._link_experts()
        modules = dict(self._model.named_modules())
        for path in {layer for name in streamed if (layer := layer_of(name, modules))}:
            self._wrap(modules[path], self._scope)
        self._wrap(self._model, self._forward)

    # --- what each kind of module gets ------------------------------------------------------------------------------

    def _attach_experts(self, path: str, module: nn.Module) -> None:
        blocks = self._experts.get(path)
        if blocks:
            views = [self._views_of(block) for block in blocks]
            self._streamed_experts[path] = StreamedExperts(
                module, path, blocks, self._engine.bridge, views, self._trust
            )
            cast(Any, module.config)._experts_implementation = IMPLEMENTATION

    def _link_experts(self) -> None:
        """Tell each layer's experts of the next layer's, and of the router that guesses them."""
        for path, after in pairwise(self._streamed_experts):
            guess = prediction(self._model, after)
            if guess is not None:
                self._streamed_experts[path].next = (self._streamed_experts[after], guess)

    def _attach_dense(self, path: str, module: nn.Module) -> bool:
        """Bind or stream the module's own weights; True if some are streamed."""
        lean = few_rows(module, module.forward)
        if lean is not None:
            module.forward = lean
        streamed: dict[Block, dict[str, TensorSpec]] = {}
        holders: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
        for own in holders:
            for name in list(own):
                block, spec = self._home.get(f"{path}.{name}" if path else name, (None, None))
                if block is None or spec is None:
                    continue
                if block.id in self._engine.pinned:
                    own[name] = self._pinned(block, spec, own[name])
                else:
                    streamed.setdefault(block, {})[name] = spec
        if streamed:
            readers = [self._engine.rows[block.id] for block in streamed if block.id in self._engine.rows]
            by_row = bool(readers) and isinstance(module, nn.Embedding)
            whole = not by_row or all(block.id in self._engine.elastic for block in streamed)
            leased = _Streamed(module, path, streamed, self._engine, self._scopes, whole=whole)
            self._wrap(module, functools.partial(leased.by_row, readers[0]) if by_row else leased.forward)
        return bool(streamed)

    def _views_of(self, block: Block) -> SlotViews:
        """Shared by all blocks in which tensors of the same kinds lie at the same places."""
        places = tuple((spec.dtype, spec.shape, spec.offset) for spec in block.tensors)
        return self._views.setdefault(places, SlotViews(self._engine.arena, block.tensors))

    def _pinned(self, block: Block, spec: TensorSpec, bare: torch.Tensor) -> torch.Tensor:
        """The tensor in the place of ``bare``, the same for every module that shares it."""
        key = (block.id, spec.name)
        if key not in self._bound:
            (tensor,) = tensors_on(self._engine.arena, (spec,), self._engine.pinned[block.id])
            self._bound[key] = nn.Parameter(tensor, bare.requires_grad) if isinstance(bare, nn.Parameter) else tensor
        bound: torch.Tensor = self._bound[key]
        return bound

    # --- forwards ---------------------------------------------------------------------------------------------------

    def _wrap(self, module: nn.Module, around: Callable[..., Any]) -> None:
        original = module.forward

        @functools.wraps(original)
        def forward(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs)

        module.forward = forward

    def _scope(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._scopes.open.append([])
        try:
            return original(*args, **kwargs)
        finally:
            for streamed in self._scopes.open.pop():
                streamed.leave()

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        engine = self._engine
        if self._scopes.open:  # a forward inside a forward of this thread
            return original(*args, **kwargs)
        ids = kwargs.get("input_ids", args[0] if args else None)
        engine.bridge.begin()
        try:
            with torch.no_grad():  # nothing may remember weights that will not stay
                out = self._scope(original, *args, **kwargs)
            engine.count_forward(ids.numel() if isinstance(ids, torch.Tensor) else 0)
            return out
        finally:
            self._scopes.open.clear()
            engine.bridge.end()


class _Streamed:
    """A module whose own weights are leased while it runs."""

    def __init__(
        self,
        module: nn.Module,
        path: str,
        blocks: dict[Block, dict[str, TensorSpec]],
        engine: Engine,
        scopes: _Scopes,
        *,
        whole: bool,
    ) -> None:
        """``whole``: the weights can be leased; otherwise only rows of them are ever in memory."""
        self._path, self._engine, self._scopes, self._whole = path, engine, scopes, whole
        self._blocks = {block.id: names for block, names in blocks.items()}
        names = [name for names in blocks.values() for name in names]
        self._parameters = _LeasedParameters(module._parameters, names, self._late)
        module._parameters = self._parameters

    def forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The module's forward, under a lease on its weights."""
        self._enter()
        try:
            out = original(*args, **kwargs)
            # A view on the weights, which will not stay, is copied.
            return out.clone() if isinstance(out, torch.Tensor) and self._engine.holds(out) else out
        finally:
            self.leave()

    def by_row(self, reader: RowReader, original: Callable[..., Any], ids: torch.Tensor) -> Any:
        """The forward of an embedding: on its weight if that is in memory, else on one with the rows ``ids`` alone."""
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
        self._bind(self._engine.bridge.acquire(tuple(self._blocks)))

    def _enter_resident(self) -> bool:
        """Enter if the one block is in memory; whether it is."""
        (block,) = self._blocks
        slot = self._engine.bridge.acquire_resident(block)
        if slot is not None:
            self._bind([(block, slot)])
        return slot is not None

    def _bind(self, leases: Iterable[tuple[BlockId, Slot]]) -> None:
        bound: dict[str, nn.Parameter] = {}
        for block, slot in leases:
            specs = self._blocks[block]
            tensors = tensors_on(self._engine.arena, [*specs.values()], slot)
            bound |= {name: self._parameters.like(name, t) for name, t in zip(specs, tensors, strict=True)}
        self._parameters.bind(bound)

    def leave(self) -> None:
        """Give back what one ``_enter`` took."""
        self._parameters.unbind()
        for block in self._blocks:
            self._engine.bridge.release(block)

    def _late(self, name: str) -> Any:
        """What to show for the weight ``name`` outside of the module's forward."""
        bare = self._parameters.placeholders[name]
        if not self._scopes.open:
            return bare  # nobody computes
        return Absent.of(bare, lambda: self._fetch(name))

    def _fetch(self, name: str) -> Any:
        """The weight ``name``, used outside of the module's forward: leased until the layer around it is done."""
        if not self._whole:
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but under this budget it is read by row; "
                "raise host_memory until the model fits, or load it with transformers instead"
            )
        self._enter()
        self._scopes.open[-1].append(self)
        return self._parameters[name]


class _LeasedParameters(dict[str, Any]):
    """Parameters of a streamed module: placeholders, except in the threads that hold a lease.

    Bound anew by every thread that enters, so that nothing left behind by an interrupted one is ever computed on.
    """

    def __init__(self, parameters: dict[str, Any], names: Sequence[str], late: Callable[[str], Any]) -> None:
        super().__init__(parameters)
        self.placeholders = {name: parameters[name] for name in names}
        self._late = late
        self._threads: set[int] = set()
        self._lock = threading.Lock()

    def __getitem__(self, name: str) -> Any:
        if name in self.placeholders and threading.get_ident() not in self._threads:
            return self._late(name)
        return super().__getitem__(name)

    def like(self, name: str, tensor: torch.Tensor) -> nn.Parameter:
        """``tensor`` as the parameter ``name``. Whether it requires gradients is part of the bits: torch multiplies by
        one that does in another way (it folds a batch into rows)."""
        return nn.Parameter(tensor, self.placeholders[name].requires_grad)

    def bind(self, parameters: dict[str, nn.Parameter]) -> None:
        with self._lock:
            self._threads.add(threading.get_ident())
            self.update(parameters)

    def unbind(self) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if not self._threads:
                self.update(self.placeholders)
