"""Attaches a transformers model to an engine: every module finds its weights in memory while it runs.

No code per architecture. What stays in memory is bound once. A module whose weights are streamed gets a forward that
leases them first and gives them back after. Experts go through runtime/experts/experts.py, embeddings read by row
throug
through
runtime/tiers/embedding_rows.py, long prompts through a layer's token-wise modules in parts
(runtime/modules/chunks.py). The outermost forward
tells the planner where each token begins and ends.
"""

import functools
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn

from ...kernels.memory.arena import ArenaClosed
from ...tiering.errors import Closed, UnplaceableModule
from ...tiering.events import Slot
from ...tiering.planner.regions import KEPT
from ...tiering.store.bundle.manifest import Block, TensorSpec
from ...tiering.units import BlockId
from ..checkpoints.modules import is_experts, layer_of
from ..experts.coactivation import CoActivation
from ..experts.experts import IMPLEMENTATION, StreamedExperts, Trust
from ..experts.guessing import Guesses
from ..routing.router import prediction
from ..tiers.embedding_rows import RowReader
from ..tiers.engine import Engine
from ..tiers.expert_planes import stacks
from ..tiers.placeholders import LazyWeight
from ..tiers.views import SlotViews, parameter, tensors_on
from .chunks import in_parts, is_divisible
from .linear import few_rows, lean_weight

Around = Callable[[dict[str, Any]], AbstractContextManager[None]]
"""What is entered around each forward of the model, with its keyword arguments, which it may change."""


def attach(model: nn.Module, engine: Engine, around: Around | None = None) -> None:
    """Bind the weights of ``model``, built on placeholders, to the blocks of ``engine``, whose ``load`` has run."""
    _Attachment(model, engine, around or _nothing).attach()


def _nothing(_: dict[str, Any]) -> AbstractContextManager[None]:
    return nullcontext()


class _Scopes(threading.local):
    """Per thread: for every forward entered and not yet left, the modules whose weights it must give back; and the
    modules whose weights are leased together, for the layer around them."""

    def __init__(self) -> None:
        self.open: list[list[_Streamed]] = []
        self.leased: set[_Streamed] = set()


class _Attachment:
    def __init__(self, model: nn.Module, engine: Engine, around: Around) -> None:
        self._model, self._engine, self._around = model, engine, around
        tied = engine.bundle.manifest.tied
        self._home = {
            spec.name: (block, spec)
            for block in engine.blocks.values()
            if block.id.kind == "dense"
            for spec in block.tensors
        }
        self._home |= {name: self._home[stored] for name, stored in tied.items() if stored in self._home}
        self._experts: dict[str, list[list[Block]]] = {}
        for stack in stacks([*engine.blocks.values()]):
            self._experts.setdefault(stack[0].id.module, []).append(stack)
        self._bound: dict[tuple[BlockId, str], Any] = {}
        self._scopes = _Scopes()
        self._streamed_experts: dict[str, StreamedExperts] = {}
        self._trust = Trust()

    def attach(self) -> None:
        streamed: dict[str, _Streamed] = {}
        for path, module in self._model.named_modules():
            if is_experts(module):
                self._attach_experts(path, module)
            if (leased := self._attach_dense(path, module)) is not None:
                streamed[path] = leased
        self._link_experts()
        modules = dict(self._model.named_modules())
        self._attach_parts(modules, streamed)
        layers: dict[str, list[_Streamed]] = {}
        for path, leased in streamed.items():
            if layer := layer_of(path, modules):
                layers.setdefault(layer, []).append(leased)
        for path, inside in layers.items():
            self._wrap(modules[path], functools.partial(self._layer, _Together(inside, self._engine, self._scopes)))
        self._wrap(self._model, self._forward)
        self._bound.clear()  # the model has them; when it lets go of them, their memory goes

    # --- what each kind of module gets ------------------------------------------------------------------------------

    def _attach_experts(self, path: str, module: nn.Module) -> None:
        experts = self._experts.get(path)
        if experts:
            self._streamed_experts[path] = StreamedExperts(module, path, experts, self._engine, self._trust)
            cast(Any, module.config)._experts_implementation = IMPLEMENTATION

    def _link_experts(self) -> None:
        """Tell each layer's experts of the next layer's, and of who guesses them."""
        for path, after in pairwise(self._streamed_experts):
            experts = self._streamed_experts[after]
            together = CoActivation(len(self._experts[path]), len(self._experts[after]))
            router = prediction(self._model, after)
            experts.guesses = Guesses(self._engine.predictors, router, together, experts.absent)
            self._streamed_experts[path].next = (experts, experts.guesses)

    def _attach_dense(self, path: str, module: nn.Module) -> "_Streamed | None":
        """Bind or stream the module's own weights; who leases those that are streamed."""
        lean = few_rows(module, module.forward) if self._engine.native else None
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
                    own[name] = self._pinned(module, block, spec, own[name])
                else:
                    streamed.setdefault(block, {})[name] = spec
        if not streamed:
            return None
        readers = [self._engine.rows[block.id] for block in streamed if block.id in self._engine.rows]
        by_row = bool(readers) and isinstance(module, nn.Embedding)
        whole = not by_row or all(block.id in self._engine.elastic for block in streamed)
        leased = _Streamed(module, path, streamed, self._engine, self._scopes, whole=whole)
        self._wrap(module, functools.partial(leased.by_row, readers[0]) if by_row else leased.forward)
        return leased

    def _attach_parts(self, modules: Mapping[str, nn.Module], streamed: Mapping[str, "_Streamed"]) -> None:
        """Have long prompts pass in parts through those modules of layers whose weights can be in memory together.

        On a device they go as a whole: what was found out about parts holds for the CPU."""
        if not self._engine.native:
            return
        sizes = {id_: self._engine.blocks[id_].extent.length for id_ in self._engine.placement.streamed}
        room = self._engine.placement.stream_region_bytes
        for path, module in modules.items():
            if layer_of(path, modules) in (None, path) or not is_divisible(module):
                continue
            inside = [leased for name, leased in streamed.items() if name.startswith(f"{path}.")]
            if sum(sizes.get(block, 0) for leased in inside for block in leased.blocks) <= room:
                held = functools.partial(_held, inside, self._engine, self._scopes)
                module.forward = in_parts(module, module.forward, held)

    def _pinned(self, module: nn.Module, block: Block, spec: TensorSpec, bare: torch.Tensor) -> torch.Tensor:
        """The tensor in the place of ``bare``, the same for every module that shares it."""
        key = (block.id, spec.name)
        if key not in self._bound:
            (tensor,) = tensors_on(self._engine.arena, [((spec,), self._engine.pinned[block.id])])
            # torch's own modules have a lean forward where they need one; every look at a lean weight costs a call.
            lean = self._engine.native and spec.packing is None and not isinstance(module, nn.Linear | nn.Embedding)
            made = lean_weight if lean else parameter
            self._bound[key] = made(tensor, bare.requires_grad) if isinstance(bare, nn.Parameter) else tensor
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

    def _layer(self, together: "_Together", original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        leased = together.enter()
        try:
            return self._scope(original, *args, **kwargs)
        finally:
            if leased:
                together.leave()

    def _forward(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        engine = self._engine
        if self._scopes.open:  # a forward inside a forward of this thread
            return original(*args, **kwargs)
        kwargs |= dict(zip(inspect.signature(original).parameters, args, strict=False))  # whoever is around knows names
        ids = kwargs.get("input_ids")
        engine.begin_forward()
        try:
            # Nothing may remember weights that will not stay.
            with torch.no_grad(), engine.current(), self._around(kwargs):
                out = self._scope(original, **kwargs)
            engine.count_forward(ids.numel() if isinstance(ids, torch.Tensor) else 0)
            engine.note_cache(kwargs.get("past_key_values") or getattr(out, "past_key_values", None))
            return out
        except ArenaClosed as error:  # what was leased, or read by row, when somebody closed the model
            raise Closed("this model was closed; load it again to use it") from error
        except torch.OutOfMemoryError as error:
            if engine.device is None:
                raise
            # Without its frames, which hold what was computed until then.
            raise engine.device.full(error) from error.with_traceback(None)
        finally:
            self._scopes.open.clear()
            self._scopes.leased.clear()
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
        names = [name for names in blocks.values() for name in names]
        self._parameters = _LeasedParameters(module._parameters, names, self._late)
        module._parameters = self._parameters
        self.blocks = tuple(block.id for block in blocks)
        self._views = {block.id: (tuple(names), self._views_of(names)) for block, names in blocks.items()}

    def _views_of(self, specs: dict[str, TensorSpec]) -> SlotViews[tuple[nn.Parameter, ...]]:
        # Whether a weight requires gradients is part of the bits: torch multiplies by one that does in another way (it
        # folds a batch into rows).
        grads = tuple(self._parameters.placeholders[name].requires_grad for name in specs)

        def make(tensors: tuple[torch.Tensor, ...]) -> tuple[nn.Parameter, ...]:
            return tuple(map(parameter, tensors, grads))

        return self._engine.views.of([[*specs.values()]], make, kind=grads)

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
        return out.clone() if isinstance(out, torch.Tensor) and self._engine.holds(out) else out

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
        self.bind(dict(self._engine.bridge.acquire(self.blocks)))

    def _enter_resident(self) -> bool:
        """Enter if the one block is in memory; whether it is."""
        slots = self._engine.bridge.acquire_resident(self.blocks)
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
        """Show them no more."""
        self._parameters.unbind()

    def leave(self) -> None:
        """Give back what one ``_enter`` took."""
        self.unbind()
        self._engine.bridge.release(*self.blocks)

    def _late(self, name: str) -> Any:
        """What to show for the weight ``name`` outside of the module's forward."""
        bare = self._parameters.placeholders[name]
        if not self._scopes.open:
            return bare  # nobody computes
        return LazyWeight.of(bare, lambda: self._fetch(name))

    def _fetch(self, name: str) -> Any:
        """The weight ``name``, used outside of the module's forward: leased until the layer around it is done."""
        if not self._whole:
            budget = "host_memory" if self._engine.device is None else "device_memory"
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but under this budget it is read by row; "
                f"raise {budget} until the model fits, or load it with transformers instead"
            )
        self._enter()
        self._scopes.open[-1].append(self)
        return self._parameters[name]


class _Together:
    """The modules of a layer whose weights normally stay in memory: while they do, one lease for all of them."""

    def __init__(self, inside: Sequence[_Streamed], engine: Engine, scopes: _Scopes) -> None:
        self._bridge, self._scopes = engine.bridge, scopes
        self._inside = [leased for leased in inside if engine.elastic.issuperset(leased.blocks)]
        self._blocks = tuple(dict.fromkeys(block for leased in self._inside for block in leased.blocks))

    def enter(self) -> bool:
        """Lease what is in memory for the calling thread, if that is all of them; whether it is."""
        slots = self._bridge.acquire_resident(self._blocks, region=KEPT) if self._blocks else None
        if not slots:
            return False
        for leased in self._inside:
            leased.bind(slots)
        self._scopes.leased.update(self._inside)
        return True

    def leave(self) -> None:
        """Give back what ``enter`` took."""
        self._scopes.leased.difference_update(self._inside)
        for leased in self._inside:
            leased.unbind()
        self._bridge.release(*self._blocks)


@contextmanager
def _held(inside: Sequence[_Streamed], engine: Engine, scopes: _Scopes) -> Iterator[bool]:
    """Lease the weights of ``inside`` for the calling thread, all of them; whether they fit together just now."""
    missing = [leased for leased in inside if leased not in scopes.leased]
    blocks = tuple(dict.fromkeys(block for leased in missing for block in leased.blocks))
    slots: dict[BlockId, Slot] = {}
    try:
        with engine.bridge.acquire(blocks) as leases:
            slots.update(leases)  # those that came before one is refused are in it
    except UnplaceableModule:
        engine.bridge.release(*slots)
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
        engine.bridge.release(*blocks)


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

    def bind(self, parameters: Mapping[str, torch.Tensor]) -> None:
        with self._lock:
            self._threads.add(threading.get_ident())
            self.update(parameters)

    def unbind(self) -> None:
        with self._lock:
            self._threads.discard(threading.get_ident())
            if not self._threads:
                self.update(self.placeholders)
