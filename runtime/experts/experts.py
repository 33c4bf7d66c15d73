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
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from ...kernels.experts.experts import Expert, Form, Recipe, form, side_by_side
from ...kernels.products import row_parts as parts
from ...kernels.products.few_rows import MOST_ROWS
from ...kernels.products.weighted_sum import add_by_torch, add_weighted, weighted_sum
from ...tiering.errors import UnplaceableModule
from ...tiering.policy.prefetch.expert_window import at_a_time
from ...tiering.store.bundle.manifest import Block
from ...tiering.units import BlockId, MiB
from ..tiers.bridge import Bridge
from ..tiers.device.misses import HostExperts
from ..tiers.engine import Engine
from ..tiers.views import like
from .expert_groups import group, moved
from .expert_sum import ExpertSum
from .guessing import Guesses
from .tier_experts import Arrived, Lane, on_slot

IMPLEMENTATION = "penstock"
"""The name under which transformers knows our experts function."""

_ATTRIBUTE = "_penstock_experts"
_HEAP = 8 * MiB
"""Bytes of a prompt's outputs up to which its experts are taken in the order of flash, if that is not theirs."""

Observer = Callable[[int, torch.Tensor, Expert, Recipe], None]
"""Is told which expert is computed on which states [tokens, width], for prompts; its weights are there meanwhile."""


class StreamedExperts:
    """The experts of one module: which blocks they are and how to compute on them."""

    def __init__(
        self, module: torch.nn.Module, path: str, stacks: Sequence[Sequence[Block]], engine: Engine, trust: "Trust"
    ) -> None:
        """``stacks`` in the order of flash: for each expert its block, and those that have further planes of it."""
        self._module, self._bridge, self._trust = module, engine.bridge, trust
        self._place = {stack[0].id.part: place for place, stack in enumerate(stacks)}
        self._as_numbered = all(expert == place for expert, place in self._place.items())
        stacks = sorted(stacks, key=lambda stack: stack[0].id.part)
        self._blocks = [stack[0].id for stack in stacks]
        self._residuals = [[block.id for block in stack[1:]] for stack in stacks]
        kinds = [[spec for spec in stack[0].tensors if not (spec.packing and spec.packing.plane)] for stack in stacks]
        self._names = {spec.name.removeprefix(f"{path}."): n for n, spec in enumerate(kinds[0])}
        first = "gate_up_proj" if module.has_gate else "up_proj"
        order = [self._names.get(name) for name in (first, f"{first}_bias", "down_proj", "down_proj_bias")]
        self._whole = order[0] is not None and order[2] is not None
        self._recipe = Recipe(
            transposed=bool(module.is_transposed),
            activation=module._apply_gate if module.has_gate else module.act_fn,  # type: ignore[arg-type]
            post=module.post_expert_norm if getattr(module, "has_post_expert_norm", False) else None,  # type: ignore[arg-type]
        )
        planes, native = engine.planes, engine.native
        self._grouped = engine.grouped
        self._lane = Lane(
            stacks, order, self._recipe, engine.bridge, engine.views, planes, native=native, grouped=engine.grouped
        )
        self._host: HostExperts | None = None
        """Who computes experts that are not on the device, if anybody may."""
        if engine.misses is not None:
            below = Lane(stacks, order, self._recipe, engine.misses.host, engine.misses.views, planes, native=True)
            sizes = {stack[0].id: stack[0].extent.length for stack in stacks}
            self._host = HostExperts(below, engine.misses, sizes)
        self._add = add_weighted if native else add_by_torch
        alike = {tuple(replace(spec, name="") for spec in specs): specs for specs in kinds}
        self._like = [on_slot(tuple(map(like, specs)), order).expert for specs in alike.values()]
        self._plain = threading.local()
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
        chosen = index.cpu()  # which experts are needed, only the host can say
        if self.guesses is not None:
            self.guesses.used(chosen)
        return self._forward(hidden, index, weights, chosen)

    def _forward(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor
    ) -> torch.Tensor:
        """``chosen`` is ``index`` in host memory."""
        if not self._whole:
            return self._eager(hidden, index, weights)
        if self._grouped:  # other bits are welcome
            return self._lean(hidden, chosen, weights, self._host)
        kind = (type(self._module), hidden.dtype, len(hidden) if len(hidden) <= MOST_ROWS else 0)
        trusted = self._trust.get(kind)
        if trusted is False:
            return self._eager(hidden, index, weights)
        few = 2 * parts.ROWS
        if trusted is None and len(hidden) > few:  # tried on a few: the eager code takes memory for all rows at once
            self._forward(hidden[:few], index[:few], weights[:few], chosen[:few])
            return self._forward(hidden, index, weights, chosen)
        if trusted:
            return self._lean(hidden, chosen, weights, self._host)
        experts = {expert for expert in chosen.flatten().tolist() if expert < len(self._blocks)}
        with self._lane.same_planes(experts):
            out, plain = self._lean(hidden, chosen, weights, None), self._eager(hidden, index, weights)
        self._trust.set(kind, torch.equal(out, plain))
        return plain

    def _lean(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, host: HostExperts | None
    ) -> torch.Tensor:
        """``host`` may compute some of the experts."""
        alone = len(hidden) == 1 and self._lane.native and self._host is None
        out = self._token(hidden, chosen, weights) if alone else None
        return self._many(hidden, chosen, weights, host) if out is None else out

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

    def _many(
        self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor, host: HostExperts | None
    ) -> torch.Tensor:
        """The forward of any number of tokens; ``index`` is in host memory."""
        hidden = hidden.contiguous()
        near = group(index, len(self._blocks))
        groups = moved(near, hidden.device)
        # In another order, outputs wait for those of lower experts: only where that takes little memory.
        piled_up = index.numel() * hidden.shape[1] * hidden.element_size() > _HEAP
        wanted = [self._blocks[expert] for expert in groups] if piled_up else self.in_order_of_flash(groups)
        below: list[BlockId] = []
        if host is not None and self.observer is None:
            below = host.chosen([*filter(self._bridge.is_missing, wanted)], near)
            there = set(wanted).difference(below)
            wanted = [block for block in wanted if block in there]
        guess = _Guess(self.next, self._bridge, hidden, index, self._finest_first(index, weights))
        total = ExpertSum(hidden, groups, weights, self._add)
        # The states come down before the device is given more to do, behind which they would wait.
        outputs = host.outputs(below, near, hidden.cpu()) if host is not None and below else iter(())

        def meanwhile() -> bool:
            some = next(outputs, None)
            total.take(some or ())
            return some is not None

        size = at_a_time(len(wanted), index.numel()) or 1
        for start in range(0, len(wanted), size):
            window, rest = wanted[start : start + size], wanted[start + size :]
            with closing(self._arriving(window, rest, guess, meanwhile)) as arriving:
                for arrived in arriving:
                    if self.observer is not None:
                        for number, expert in arrived.experts:
                            self.observer(number, hidden[groups[number][0]], expert, self._recipe)
                    total.take(self._lane.outputs(arrived, groups, hidden))
        if not wanted:
            guess.announce(())
        while meanwhile():
            pass
        return total.total

    def absent(self, experts: Iterable[int]) -> frozenset[int]:
        """Those of ``experts`` that are not in memory."""
        return frozenset(expert for expert in experts if self._bridge.is_missing(self._blocks[expert]))

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
        shares = weights.cpu().flatten().float()
        total = torch.zeros(experts + 1).scatter_add_(0, index.flatten().clamp(max=experts), shares)
        chosen = {expert for expert in index.flatten().tolist() if expert < experts}
        hottest = sorted(chosen, key=total.tolist().__getitem__, reverse=True)
        planes = zip_longest(*(self._residuals[expert] for expert in hottest))
        return [block for plane in planes for block in plane if block is not None]

    def _arriving(
        self,
        window: Sequence[BlockId],
        rest: Sequence[BlockId],
        guess: "_Guess",
        meanwhile: Callable[[], bool] = lambda: False,
    ) -> Generator[Arrived, None, None]:
        """``window``, leased, as it arrives, as many as are there at a time. Before the first wait, or at once if there
        is none, it is announced what comes next: the drive has work as long as anybody waits for it. Instead of waiting
        ``meanwhile`` is called, as long as that says that there was something to do."""
        with self._bridge.acquire(window) as leases:
            arrived = leases.here()
            if arrived and leases.left:
                yield self._lane.arrived(arrived, leases)
                arrived = leases.here()
            guess.announce(rest)
            if arrived:
                yield self._lane.arrived(arrived, leases)
            while leases.left:
                arrived = leases.here()
                if arrived or not meanwhile():
                    yield self._lane.arrived(arrived or [next(leases), *leases.here()], leases)

    def _eager(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        eager = type(self._module).forward.__wrapped__  # type: ignore[attr-defined]
        with self._one_at_a_time():
            return eager(self._module, hidden, index, weights)  # type: ignore[no-any-return]

    # --- weights ----------------------------------------------------------------------------------------------------

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
            local.tensors, local.leased = self._lane.one(self._blocks[expert])
            local.expert = expert
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


def observe(module: torch.nn.Module, observer: Observer | None) -> None:
    """Have ``observer`` told what the experts of ``module``, a streamed one, are computed on; None ends it."""
    getattr(module, _ATTRIBUTE).observer = observer


def _experts_forward(
    module: torch.nn.Module, hidden: torch.Tensor, top_k_index: torch.Tensor, top_k_weights: torch.Tensor
) -> torch.Tensor:
    experts: StreamedExperts = getattr(module, _ATTRIBUTE)
    return experts.forward(hidden, top_k_index, top_k_weights)


ALL_EXPERTS_FUNCTIONS.register(IMPLEMENTATION, _experts_forward)
