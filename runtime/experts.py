"""Experts through transformers' experts interface: computed in order of arrival, summed in transformers' order.

Two ways lead to the same bits. The lean one computes experts as they are in memory, those that are there at the same
time side by side, and keeps their outputs apart; the outputs are then added up in ascending order of the experts, as
the eager code does. The plain one runs the module's own eager code, whose stacked weights are replaced by stand-ins
that lease one expert at a time. On its first calls every kind of experts module is run both ways: if a single bit
differs, that kind is run the plain way from then on.

A prompt that needs many experts takes them in the order of flash, a few at a time, so that neither leases nor outputs
pile up; what comes next is announced, and read meanwhile. An expert of many rows is computed in parts under its one
lease, each added at once when it is the expert's turn.
"""

import threading
import time
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import takewhile, zip_longest
from typing import Any, NamedTuple

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ..kernels import parts
from ..kernels.experts import Expert, Form, Recipe, expert_parts, expert_products, form, side_by_side
from ..kernels.packed_weight import PackedWeight
from ..kernels.products import MOST_ROWS
from ..kernels.weighted_sum import add_weighted, weighted_sum
from ..tiering.errors import UnplaceableModule
from ..tiering.events import Slot
from ..tiering.policy.asking import at_a_time
from ..tiering.store.manifest import Block
from ..tiering.units import BlockId, MiB
from .bridge import Bridge, Leases
from .guessing import Guesses
from .planes import PlaneCounts
from .views import AllViews, like

IMPLEMENTATION = "penstock"
"""The name under which transformers knows our experts function."""

_ATTRIBUTE = "_penstock_experts"
_FEW = 64
"""Router choices up to which grouping in Python beats tensor operations."""
_HEAP = 8 * MiB
"""Bytes of a prompt's outputs up to which its experts are taken in the order of flash, if that is not theirs."""

Observer = Callable[[int, torch.Tensor, Expert, Recipe], None]
"""Is told which expert is computed on which states [tokens, width], for prompts; its weights are there meanwhile."""

Groups = dict[int, tuple[torch.Tensor, torch.Tensor]]
"""Expert -> (token rows, positions among the top k)."""


class StreamedExperts:
    """The experts of one module: which blocks they are and how to compute on them."""

    def __init__(
        self,
        module: torch.nn.Module,
        path: str,
        stacks: Sequence[Sequence[Block]],
        bridge: Bridge,
        views: AllViews,
        trust: "Trust",
        planes: PlaneCounts,
    ) -> None:
        """``stacks`` in the order of flash: for each expert its block, and those that have further planes of it."""
        self._module, self._bridge, self._trust, self._planes = module, bridge, trust, planes
        self._place = {stack[0].id.part: place for place, stack in enumerate(stacks)}
        self._as_numbered = all(expert == place for expert, place in self._place.items())
        stacks = sorted(stacks, key=lambda stack: stack[0].id.part)
        self._blocks = [stack[0].id for stack in stacks]
        self._residuals = [[block.id for block in stack[1:]] for stack in stacks]
        kinds = [[spec for spec in stack[0].tensors if not (spec.packing and spec.packing.plane)] for stack in stacks]
        self._names = {spec.name.removeprefix(f"{path}."): n for n, spec in enumerate(kinds[0])}
        first = "gate_up_proj" if module.has_gate else "up_proj"
        self._order = [self._names.get(name) for name in (first, f"{first}_bias", "down_proj", "down_proj_bias")]
        self._views = [
            views.of([block.tensors for block in stack], self._on_slot, kind=("expert", *self._order))
            for stack in stacks
        ]
        self._recipe = Recipe(
            transposed=bool(module.is_transposed),
            activation=module._apply_gate if module.has_gate else module.act_fn,  # type: ignore[arg-type]
            post=module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,  # type: ignore[arg-type]
        )
        alike = {tuple(replace(spec, name="") for spec in specs): specs for specs in kinds}
        self._like = [self._on_slot(tuple(map(like, specs))).expert for specs in alike.values()]
        self._plain = threading.local()
        self._fixed = _Fixed()
        self.next: tuple[StreamedExperts, Guesses] | None = None
        """The experts of the next layer, and who guesses which of them come."""
        self.guesses: Guesses | None = None
        """Who guesses which of these come."""
        self.observer: Observer | None = None
        module._parameters = _ExpertParameters(module._parameters, path, self)
        setattr(module, _ATTRIBUTE, self)

    # --- the two ways -----------------------------------------------------------------------------------------------

    def forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """``hidden`` [tokens, width], ``index`` and ``weights`` [tokens, top_k] -> [tokens, width]."""
        if self.guesses is not None:
            self.guesses.used(index)
        return self._forward(hidden, index, weights)

    def _forward(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        if None in (self._order[0], self._order[2]):
            return self._eager(hidden, index, weights)
        kind = (type(self._module), hidden.dtype, len(hidden) if len(hidden) <= MOST_ROWS else 0)
        trusted = self._trust.get(kind)
        if trusted is False:
            return self._eager(hidden, index, weights)
        few = 2 * parts.ROWS
        if trusted is None and len(hidden) > few:  # tried on a few: the eager code takes memory for all rows at once
            self._forward(hidden[:few], index[:few], weights[:few])
            return self._forward(hidden, index, weights)
        if trusted:
            return self._lean(hidden, index, weights)
        with self._same_planes(index):
            out, plain = self._lean(hidden, index, weights), self._eager(hidden, index, weights)
        self._trust.set(kind, torch.equal(out, plain))
        return plain

    def _lean(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = self._token(hidden, index, weights) if len(hidden) == 1 else None
        return self._many(hidden, index, weights) if out is None else out

    @contextmanager
    def _same_planes(self, index: torch.Tensor) -> Iterator[None]:
        """In here, this thread computes the experts ``index`` with the planes that are in memory now, and no others."""
        chosen = {expert for expert in index.flatten().tolist() if expert < len(self._blocks)}
        residuals = [block for expert in chosen for block in self._residuals[expert]]
        held = self._bridge.acquire_present(residuals) if residuals else {}
        self._fixed.planes = held.keys()
        try:
            yield
        finally:
            self._fixed.planes = None
            if held:
                self._bridge.release(*held)

    def _token(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | None:
        """The forward of one token where its experts can be computed side by side: as few steps as possible."""
        ways = {form(expert): side_by_side(1, expert, self._recipe) for expert in self._like}
        if (
            None in ways.values()
            or hidden.dtype != torch.bfloat16
            or weights.dtype not in (torch.bfloat16, torch.float32)
        ):
            return None
        experts = len(self._blocks)
        chosen = sorted(pair for pair in zip(index[0].tolist(), weights[0].tolist(), strict=True) if pair[0] < experts)
        hidden = hidden.contiguous()
        guess = _Guess(self.next, self._bridge, hidden, index, self._finest_first(index, weights))
        rows: dict[int, int] = {}
        outs: list[torch.Tensor] = []
        wanted = self.in_order_of_flash(expert for expert, _ in chosen)
        with closing(self._arriving(wanted, (), guess)) as arriving:
            for arrived in arriving:
                alike: dict[Form, list[tuple[int, Expert]]] = {}
                for number, expert in arrived.experts:
                    alike.setdefault(form(expert), []).append((number, expert))
                for kind, here in alike.items():
                    several = ways[kind]
                    assert several is not None
                    out = several([hidden.data_ptr()] * len(here), [expert for _, expert in here], self._recipe)
                    outs.append(out)  # what lies at the addresses must stay
                    first, size = out.data_ptr(), 2 * out.shape[-1]
                    rows |= {part: first + number * size for number, (part, _) in enumerate(here)}
                self._bridge.release(*arrived.leased)
        return weighted_sum([rows[expert] for expert, _ in chosen], [weight for _, weight in chosen], hidden.shape[1])

    def _many(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The forward of any number of tokens."""
        hidden = hidden.contiguous()
        groups = _group(index, len(self._blocks))
        ascending = list(groups)
        # In another order, outputs wait for those of lower experts: only where that takes little memory.
        piled_up = index.numel() * hidden.shape[1] * hidden.element_size() > _HEAP
        wanted = [self._blocks[expert] for expert in ascending] if piled_up else self.in_order_of_flash(ascending)
        size = at_a_time(len(wanted), index.numel())
        guess = _Guess(self.next, self._bridge, hidden, index, self._finest_first(index, weights))
        outs: dict[int, list[tuple[slice, torch.Tensor]]] = {}
        final = torch.zeros_like(hidden)
        added = 0

        def add(expert: int, part: slice, out: torch.Tensor) -> None:
            rows, picks = groups[expert][0][part], groups[expert][1][part]
            add_weighted(final, rows, out, weights[rows, picks])

        for start in range(0, len(wanted), size):
            window, rest = wanted[start : start + size], wanted[start + size :]
            with closing(self._arriving(window, rest, guess)) as arriving:
                for arrived in arriving:
                    for expert, part, out in self._products(arrived, groups, hidden):
                        kept = outs.setdefault(expert, [])
                        if expert == ascending[added]:
                            add(expert, part, out)
                        else:
                            kept.append((part, out))
                    while added < len(ascending) and ascending[added] in outs:
                        for part, out in outs.pop(ascending[added]):
                            add(ascending[added], part, out)
                        added += 1
        return final

    def absent(self, experts: Iterable[int]) -> frozenset[int]:
        """Those of ``experts`` that are not in memory."""
        return frozenset(expert for expert in experts if self._bridge.is_absent(self._blocks[expert]))

    def in_order_of_flash(self, experts: Iterable[int]) -> list[BlockId]:
        """The blocks of ``experts``; where these do not lie by number, so that neighbours are asked for together."""
        if not self._as_numbered:
            experts = sorted(experts, key=self._place.__getitem__)
        return [self._blocks[expert] for expert in experts]

    def _finest_first(self, index: torch.Tensor, weights: torch.Tensor) -> list[BlockId]:
        """The residuals of the experts ``index`` [tokens, top_k], those that change most first: the lower planes, and
        there those of the experts with the largest ``weights``, over all tokens."""
        if not any(self._residuals):
            return []
        experts = len(self._blocks)
        total = torch.zeros(experts + 1).scatter_add_(0, index.flatten().clamp(max=experts), weights.flatten().float())
        chosen = {expert for expert in index.flatten().tolist() if expert < experts}
        hottest = sorted(chosen, key=total.tolist().__getitem__, reverse=True)
        planes = zip_longest(*(self._residuals[expert] for expert in hottest))
        return [block for plane in planes for block in plane if block is not None]

    def _arriving(
        self, window: Sequence[BlockId], rest: Sequence[BlockId], guess: "_Guess"
    ) -> Generator["_Arrived", None, None]:
        """``window``, leased, as it arrives, as many as are there at a time. Before the first wait, or at once if there
        is none, it is announced what comes next: the drive has work as long as anybody waits for it."""
        with self._bridge.acquire(window) as leases:
            arrived = leases.here()
            if arrived and leases.left:
                yield self._arrived(arrived, leases)
                arrived = leases.here()
            guess.announce(rest)
            if arrived:
                yield self._arrived(arrived, leases)
            while leases.left:
                yield self._arrived([next(leases), *leases.here()], leases)

    def _products(
        self, arrived: "_Arrived", groups: Groups, hidden: torch.Tensor
    ) -> Iterator[tuple[int, slice, torch.Tensor]]:
        """The outputs [rows, width] of the experts that ``arrived``, and which part of each one's rows they are, in
        order; all of an expert before the next one. In the end their leases are given back."""
        few: list[int] = []
        experts: list[Expert] = []
        for number, expert in arrived.experts:
            rows = groups[number][0]
            if self.observer is not None:
                self.observer(number, hidden[rows], expert, self._recipe)
            several = expert_parts(hidden, rows, expert, self._recipe)
            if len(several) == 1:
                few.append(number)
                experts.append(expert)
                continue
            for part in several:
                for _, out in expert_products([hidden[rows[part]]], [expert], self._recipe):
                    yield number, part, out[0]
        states = [hidden[groups[number][0]] for number in few]
        for positions, outs in expert_products(states, experts, self._recipe):
            for position, out in zip(positions, outs, strict=True):
                yield few[position], slice(None), out
        self._bridge.release(*arrived.leased)

    def _eager(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        eager = type(self._module).forward.__wrapped__  # type: ignore[attr-defined]
        with self._one_at_a_time():
            return eager(self._module, hidden, index, weights)  # type: ignore[no-any-return]

    # --- weights ----------------------------------------------------------------------------------------------------

    def _on_slot(self, tensors: tuple[torch.Tensor, ...]) -> "_OnSlot":
        ordered: list[Any] = [None if position is None else tensors[position] for position in self._order]
        planes = max(len(tensor.planes) if isinstance(tensor, PackedWeight) else 1 for tensor in tensors)
        return _OnSlot(tensors, Expert(*ordered), planes)

    def _arrived(self, arrived: Sequence[tuple[BlockId, Slot]], leases: Leases) -> "_Arrived":
        """What of ``leases`` has ``arrived``, as it is to be computed with."""
        views = [self._view(block, slot, leases.finer(block)) for block, slot in arrived]
        self._planes.add([view.planes for view in views])
        experts = [(block.part, view.expert) for (block, _), view in zip(arrived, views, strict=True)]
        return _Arrived(experts, leases.leased([block for block, _ in arrived]))

    def _view(self, block: BlockId, slot: Slot, finer: Sequence[Slot]) -> "_OnSlot":
        """The expert ``block``, with its residuals in ``finer``, as far as this thread takes them now."""
        fixed = self._fixed.planes
        if fixed is not None:
            taken = takewhile(lambda pair: pair[0] in fixed, zip(self._residuals[block.part], finer, strict=False))
            finer = [slot for _, slot in taken]
        return self._views[block.part].on(slot, *finer)

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        """In here, indexing the module's stacked weights leases that expert and releases the one before."""
        self._plain.expert, self._plain.leased, self._plain.tensors = None, [], ()
        try:
            yield
        finally:
            if self._plain.leased:
                self._bridge.release(*self._plain.leased)
            del self._plain.expert, self._plain.leased, self._plain.tensors

    def stacked(self, name: str) -> "_Stacked | None":
        """The stand-in for the stacked parameter ``name`` while the module's eager code runs in this thread."""
        return _Stacked(self, self._names[name]) if hasattr(self._plain, "expert") and name in self._names else None

    def slice(self, position: int, expert: int) -> torch.Tensor:
        """Tensor number ``position`` of ``expert``, leased."""
        local = self._plain
        if local.expert != expert:
            if local.leased:
                self._bridge.release(*local.leased)
                local.leased = []
            leases = self._bridge.acquire([self._blocks[expert]])
            ((block, slot),) = leases
            local.leased = leases.leased([block])
            view = self._view(block, slot, leases.finer(block))
            self._planes.add([view.planes])
            local.expert, local.tensors = expert, view.tensors
        return local.tensors[position]  # type: ignore[no-any-return]


class _Guess:
    """Which experts the next layer will choose, made at most once, when it is first announced."""

    def __init__(
        self,
        next_: tuple[StreamedExperts, Guesses] | None,
        bridge: Bridge,
        hidden: torch.Tensor,
        index: torch.Tensor,
        finer: Sequence[BlockId],
    ) -> None:
        """``finer`` are the residuals of the experts that this layer chose."""
        self._next, self._bridge, self._hidden, self._index, self._finer = next_, bridge, hidden, index, finer
        self._blocks: list[BlockId] | None = None

    def announce(self, certain: Sequence[BlockId]) -> None:
        """Tell the planner that ``certain`` come next, and then perhaps those guessed; and of the residuals."""
        seconds = 0.0
        if self._blocks is None:
            self._blocks = []
            if self._next is not None and self._bridge.speculation.active:
                start = time.monotonic()
                experts, guesses = self._next
                chosen = guesses.experts(self._hidden, self._index)
                self._blocks = experts.in_order_of_flash(chosen)
                seconds = time.monotonic() - start
        if certain or self._blocks or self._finer:
            self._bridge.expect(certain, self._blocks, seconds, self._finer)


class _OnSlot(NamedTuple):
    """An expert in its slots: its tensors in the order of the block, and as they are computed with; how many planes."""

    tensors: tuple[torch.Tensor, ...]
    expert: Expert
    planes: int


class _Arrived(NamedTuple):
    """Experts that are here, with their numbers, and what is leased for them."""

    experts: list[tuple[int, Expert]]
    leased: list[BlockId]


class _Fixed(threading.local):
    """Per thread: the residuals to compute with, no matter what else is here; all that are if None."""

    planes: Collection[BlockId] | None = None


class Trust:
    """Which kinds of experts, by their module's class, dtype and number of tokens, the lean way computes bit for bit.
    One per loaded model."""

    def __init__(self) -> None:
        self._known: dict[Hashable, bool] = {}

    def get(self, kind: Hashable) -> bool | None:
        return self._known.get(kind)

    def set(self, kind: Hashable, equal: bool) -> None:
        self._known[kind] = self._known.get(kind, True) and equal


class _Stacked:
    """Looks to the eager code like a parameter [experts, ...] of which single experts are taken."""

    def __init__(self, experts: StreamedExperts, position: int) -> None:
        self._experts, self._position = experts, position

    def __getitem__(self, expert: Any) -> torch.Tensor:
        return self._experts.slice(self._position, int(expert))


class _ExpertParameters(dict[str, Any]):
    """The module's parameters; the stacked ones cannot be taken as a whole, for they are never in memory as a whole."""

    def __init__(self, parameters: dict[str, Any], path: str, experts: StreamedExperts) -> None:
        super().__init__(parameters)
        self._path, self._experts = path, experts

    def __getitem__(self, name: str) -> Any:
        stacked = self._experts.stacked(name)
        if stacked is not None:
            return stacked
        if name in self._experts._names:
            raise UnplaceableModule(
                f"{self._path}.{name} is used as a whole, but the experts of this module are streamed one by one; "
                "load the model with transformers instead"
            )
        return super().__getitem__(name)


def _group(index: torch.Tensor, experts: int) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Expert -> (token rows, positions among the top k), experts ascending, rows in the order eager code takes them.

    ``index`` is [tokens, top_k]; entries >= ``experts`` mean "no expert" and are left out.
    """
    tokens, top_k = index.shape
    if tokens * top_k <= _FEW:
        grouped: dict[int, tuple[list[int], list[int]]] = {}
        picked = index.tolist()
        for pick in range(top_k):
            for row in range(tokens):
                rows, picks = grouped.setdefault(picked[row][pick], ([], []))
                rows.append(row)
                picks.append(pick)
        return {
            expert: (torch.tensor(grouped[expert][0]), torch.tensor(grouped[expert][1]))
            for expert in sorted(grouped)
            if expert < experts
        }
    flat = index.t().reshape(-1)
    order = flat.argsort(stable=True)
    counts = torch.bincount(flat, minlength=experts + 1).tolist()
    parts = torch.split(order, counts)
    return {expert: (parts[expert] % tokens, parts[expert] // tokens) for expert in range(experts) if counts[expert]}


def observe(module: torch.nn.Module, observer: Observer | None) -> None:
    """Have ``observer`` told what the experts of ``module``, a streamed one, are computed on; None ends it."""
    getattr(module, _ATTRIBUTE).observer = observer


def _experts_forward(
    module: torch.nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    experts: StreamedExperts = getattr(module, _ATTRIBUTE)
    return experts.forward(hidden, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
