"""The fast way to compute experts: as they are in memory, side by side, outputs summed in transformers' order.

Experts that are in memory at the same time are computed side by side. Their outputs are kept apart and added up in
ascending order of the experts, as the eager code does, so the bits are the same.

A prompt that needs many experts takes them in the order of flash, a few at a time, so that neither leases nor outputs
pile up; what comes next is announced, and read meanwhile. An expert of many rows is computed in parts under its one
lease, each added at once when it is the expert's turn.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from typing import NamedTuple

import torch

from ...kernels.experts.experts import Expert, Form, Recipe, SideBySide, find_form, find_side_by_side
from ...kernels.process.interrupts import calls_others
from ...kernels.products.few_rows import MOST_ROWS
from ...kernels.products.row_order import ROW_ORDER
from ...kernels.products.weighted_sum import add_by_torch, add_weighted, sum_weighted
from ...tiering.policy.prefetch.expert_window import at_a_time
from ...tiering.units import BlockId, MiB
from .announcing import Announcement, NextLayer
from .expert_blocks import ExpertBlocks
from .expert_groups import Groups, group, move_groups
from .expert_sum import ExpertSum
from .few_tokens import alike, choices_of, users_of
from .host import HostExperts
from .tier_experts import Arrived, TierExperts

_WEIGHTS = (torch.bfloat16, torch.float32)
_HEAP = 8 * MiB
"""Bytes of a prompt's outputs up to which its experts are taken in the order of flash, if that is not theirs."""

Observer = Callable[[int, torch.Tensor, Expert, Recipe], None]
"""Is told which expert is computed on which states [tokens, width], for prompts; its weights are there meanwhile."""


class TokenCall(NamedTuple):
    """Tokens for the experts of a module: ``hidden`` [tokens, width], ``chosen``, in host memory, and ``weights``
    [tokens, top_k]."""

    hidden: torch.Tensor
    chosen: torch.Tensor
    weights: torch.Tensor


class FastExperts:
    """Computes the experts of one module in the order in which they arrive."""

    def __init__(
        self, blocks: ExpertBlocks, experts: TierExperts, samples: Sequence[Expert], *, with_host: bool
    ) -> None:
        """``samples`` are experts without numbers, one of each form that the module has. ``with_host``: experts may be
        computed on the host too."""
        self._blocks, self._experts, self._samples, self._with_host = blocks, experts, samples, with_host
        self._bridge, self._recipe = experts.bridge, experts.recipe
        self._ways: dict[tuple[int, int, bool], Mapping[tuple[Form, int], SideBySide]] = {}
        """By rows, number of threads and whether rows are alone."""
        self._add = add_weighted if experts.native else add_by_torch
        self.next: NextLayer | None = None
        self.observer: Observer | None = None

    def run(
        self, hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor, host: HostExperts | None
    ) -> torch.Tensor:
        """``hidden`` [tokens, width], ``chosen``, in host memory, and ``weights`` [tokens, top_k] -> [tokens, width].
        ``host`` may compute some of the experts."""
        alone = (len(hidden) == 1 or ROW_ORDER.alone) and self._experts.native and not self._with_host
        out = self._run_tokens(hidden, chosen, weights) if alone else None
        if out is None and ROW_ORDER.alone and len(hidden) > 1:
            tokens = map(TokenCall, hidden[:, None], chosen[:, None], weights[:, None])
            return torch.cat([self._run_many([token], host)[0] for token in tokens])
        return self._run_many([TokenCall(hidden, chosen, weights)], host)[0] if out is None else out

    @calls_others
    def _run_tokens(self, hidden: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor | None:
        """The forward of tokens, each as if alone, where experts can be computed side by side: as few steps as
        possible."""
        if hidden.dtype != torch.bfloat16 or weights.dtype not in _WEIGHTS:
            return None
        ways = self._find_ways(min(len(hidden), MOST_ROWS))
        if ways is None:
            return None
        width = hidden.shape[1]
        chosen = choices_of(index, weights, len(self._blocks))
        if any(len({number for number, _ in pairs}) < len(pairs) for pairs in chosen):  # one expert twice for a token
            return None
        hidden = hidden.contiguous()
        coming = Announcement(self.next, self._bridge, hidden, index, self._blocks.residuals(index, weights))
        if len(chosen) == len(ways) == 1 and chosen[0]:
            (several,) = ways.values()
            out = self._run_token(hidden, chosen[0], coming, several)
            if out is not None:
                return out
        places: dict[tuple[int, int], int] = {}  # of outputs, by token and expert
        keep: list[torch.Tensor] = []  # what lies at addresses must stay
        users = users_of(chosen)
        with closing(self._arriving(self._blocks.in_order_of_flash(users), (), coming)) as arriving:
            for arrived in arriving:
                for (form, rows), calls in alike(arrived.experts, users, MOST_ROWS).items():
                    several = ways[form, rows]
                    states = [hidden[call.tokens] if rows > 1 else hidden[call.tokens[0]] for call in calls]
                    out = several([state.data_ptr() for state in states], [call.expert for call in calls], self._recipe)
                    keep.append(out)
                    first, size = out.data_ptr(), 2 * width
                    order = ((token, call.number) for call in calls for token in call.tokens)
                    places |= {pair: first + at * size for at, pair in enumerate(order)}
                self._bridge.release(*arrived.leased)
        sums = [
            sum_weighted([places[token, expert] for expert, _ in pairs], [share for _, share in pairs], width)
            for token, pairs in enumerate(chosen)
        ]
        return sums[0] if len(sums) == 1 else torch.cat(sums)

    @calls_others
    def _find_ways(self, rows: int) -> Mapping[tuple[Form, int], SideBySide] | None:
        """For each form of expert and up to so many ``rows`` the products side by side. None if there is none for
        some."""
        key = rows, torch.get_num_threads(), ROW_ORDER.alone
        if key in self._ways:
            return self._ways[key]
        ways: dict[tuple[Form, int], SideBySide] = {}
        for expert in self._samples:
            for count in range(1, rows + 1):
                several = find_side_by_side(count, expert, self._recipe)
                if several is None:
                    return None
                ways[find_form(expert), count] = several
        self._ways[key] = ways
        return ways

    @calls_others
    def _run_token(
        self, hidden: torch.Tensor, pairs: Sequence[tuple[int, float]], coming: Announcement, several: SideBySide
    ) -> torch.Tensor | None:
        """The forward of one token with experts of one form, ``pairs``, in one call, without what several tokens or
        forms need. None unless all are in memory."""
        arrived = self._experts.lease_resident(self._blocks.in_order_of_flash([number for number, _ in pairs]))
        if arrived is None:
            return None
        coming.announce(())
        out = several([hidden.data_ptr()] * len(pairs), [expert for _, expert in arrived.experts], self._recipe)
        self._bridge.release(*arrived.leased)
        width, first = hidden.shape[1], out.data_ptr()
        rows = range(first, first + 2 * width * len(pairs), 2 * width)
        if any(arrived.experts[at][0] != number for at, (number, _) in enumerate(pairs)):  # in the order of flash
            places = dict(zip((number for number, _ in arrived.experts), rows, strict=True))
            return sum_weighted([places[number] for number, _ in pairs], [share for _, share in pairs], width)
        return sum_weighted(rows, [share for _, share in pairs], width)

    def run_several(self, calls: Sequence[TokenCall]) -> list[torch.Tensor]:
        """Compute ``run`` of each of ``calls``, with the bits of each alone. Every expert is read once for all."""
        return self._run_many(calls, None)

    @calls_others
    def _run_many(self, calls: Sequence[TokenCall], host: HostExperts | None) -> list[torch.Tensor]:
        """The forwards of any number of tokens. ``host`` may compute some of the experts of a single one."""
        hiddens = [call.hidden.contiguous() for call in calls]
        nears = [group(call.chosen, len(self._blocks)) for call in calls]
        groups = [move_groups(near, hidden.device) for near, hidden in zip(nears, hiddens, strict=True)]
        needed = sorted(set().union(*groups))
        # In another order, outputs wait for those of lower experts: only where that takes little memory.
        outputs_size = sum(call.chosen.numel() * call.hidden.shape[1] * call.hidden.element_size() for call in calls)
        piled_up = outputs_size > _HEAP
        wanted = [self._blocks.ids[expert] for expert in needed] if piled_up else self._blocks.in_order_of_flash(needed)
        on_host: list[BlockId] = []
        if host is not None and self.observer is None:
            on_host = host.choose([*filter(self._bridge.is_missing, wanted)], nears[0])
            there = set(wanted).difference(on_host)
            wanted = [block for block in wanted if block in there]
        hidden, chosen, weights = (each[0] if len(each) == 1 else torch.cat(each) for each in zip(*calls, strict=True))
        coming = Announcement(self.next, self._bridge, hidden, chosen, self._blocks.residuals(chosen, weights))
        totals = [
            ExpertSum(state, its, call.weights, self._add)
            for state, its, call in zip(hiddens, groups, calls, strict=True)
        ]
        # The states come down before the device is given more to do, behind which they would wait.
        outputs = host.outputs(on_host, nears[0], hidden.cpu()) if host is not None and on_host else iter(())

        def meanwhile() -> bool:
            some = next(outputs, None)
            totals[0].take(some or ())
            return some is not None

        size = at_a_time(len(wanted), chosen.numel()) or 1
        for start in range(0, len(wanted), size):
            window, rest = wanted[start : start + size], wanted[start + size :]
            with closing(self._arriving(window, rest, coming, meanwhile)) as arriving:
                for arrived in arriving:
                    for state, its, total in zip(hiddens, groups, totals, strict=True):
                        self._take(arrived, state, its, total)
                    self._bridge.release(*arrived.leased)
        if not wanted:
            coming.announce(())
        while meanwhile():
            pass
        return [total.total for total in totals]

    def _take(self, arrived: Arrived, hidden: torch.Tensor, groups: Groups, total: ExpertSum) -> None:
        """Add the outputs for ``hidden`` of those experts that ``arrived`` and are among ``groups`` to ``total``."""
        experts = [(number, expert) for number, expert in arrived.experts if number in groups]
        if self.observer is not None:
            for number, expert in experts:
                self.observer(number, hidden[groups[number][0]], expert, self._recipe)
        if experts:
            total.take(self._experts.outputs(experts, groups, hidden))

    def _arriving(
        self,
        window: Sequence[BlockId],
        rest: Sequence[BlockId],
        coming: Announcement,
        meanwhile: Callable[[], bool] = lambda: False,
    ) -> Generator[Arrived, None, None]:
        """``window``, leased, as it arrives, as many as are there at a time. Before the first wait, or at once if there
        is none, ``rest`` is announced: the drive has work as long as anybody waits for it. Instead of waiting
        ``meanwhile`` is called, as long as that says that there was something to do."""
        whole = self._experts.lease_resident(window)
        if whole is not None:
            coming.announce(rest)
            yield whole
            return
        with self._bridge.acquire(window) as leases:
            arrived = leases.here()
            if arrived and leases.left:
                yield self._experts.view(arrived, leases)
                arrived = leases.here()
            coming.announce(rest)
            if arrived:
                yield self._experts.view(arrived, leases)
            while leases.left:
                arrived = leases.here()
                if arrived or not meanwhile():
                    yield self._experts.view(arrived or [next(leases), *leases.here()], leases)
