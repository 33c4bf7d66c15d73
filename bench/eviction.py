"""Hit ratios of every eviction policy on routing traces, against the optimum.

    penstock profile MODEL --text FILE --out TRACE
    python bench/eviction.py TRACE [TRACE ...] [--shares 12.5 25 50]

Nothing is read and nothing is timed: each policy manages the shadow of a cache, as the planner would have it manage
the cache itself, while the traced tokens are decoded one by one. "even" gives each layer the same part of the cache;
all others share one cache among the layers. "router" ranks by the average of the router's probabilities of all experts
instead of counts of those chosen. "wrong" is auto with every prediction inverted. "rest known" is next-use
told which experts the present token will use in the layers to come: the most that a policy could reach without knowing
the next token.
"""

import argparse
from collections.abc import Collection, Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
from report import Table, publish

from penstock.runtime.routing.routes import Routes
from penstock.tiering.policy.eviction import EVICTION, Policy
from penstock.tiering.policy.eviction.auto import Auto
from penstock.tiering.policy.eviction.belady import Belady
from penstock.tiering.policy.eviction.lru import LRU
from penstock.tiering.policy.eviction.next_use import NextUse
from penstock.tiering.policy.hits import TokenExperts, hit_ratio, misses
from penstock.tiering.policy.prefetch.route import Route
from penstock.tiering.units import BlockId


class Inverted(NextUse):
    """A wrong policy: what should go last goes first."""

    def victims(self) -> Generator[BlockId, None, None]:
        """Yield the residents in the reversed order."""
        yield from reversed(list(super().victims()))


class RestKnown(NextUse):
    """Keeps what the present token will use in later layers, as long as anything else can go."""

    def __init__(self, route: Route, steps: Collection[TokenExperts]) -> None:
        super().__init__(route)
        self._steps = iter(steps)
        self._rest: set[BlockId] = set()

    def tick(self) -> None:
        """Go on to the next token."""
        super().tick()
        self._rest = {block for wanted in next(self._steps) for block in wanted}

    def used(self, blocks: Sequence[BlockId]) -> None:
        """Note the experts of a layer."""
        super().used(blocks)
        self._rest.difference_update(blocks)

    def victims(self) -> Generator[BlockId, None, None]:
        """Yield what the token does not need first."""
        yield from sorted(super().victims(), key=self._rest.__contains__)


class RouterScores:
    """Evicts the least probable first, by the router's probabilities of all experts, averaged like the counts of
    LFU."""

    name = "router"

    def __init__(self, routes: Routes, decay: float = 0.98) -> None:
        self._decay = decay
        self._probabilities = {
            layer.path: found for layer in routes.layers if (found := layer.probabilities()) is not None
        }
        self._scores = {layer.path: np.full(layer.experts, 1 / layer.experts) for layer in routes.layers}
        self._token = -1
        self._resident: set[BlockId] = set()

    def used(self, blocks: Sequence[BlockId]) -> None:
        """Average the probabilities of this layer."""
        module = blocks[0].module
        now = self._probabilities[module][self._token]
        self._scores[module] += (1 - self._decay) * (now - self._scores[module])

    def inserted(self, block: BlockId) -> None:
        """Note a resident."""
        self._resident.add(block)

    def removed(self, block: BlockId) -> None:
        """Forget a resident."""
        self._resident.remove(block)

    def tick(self) -> None:
        """Go on to the next token."""
        self._token += 1

    def victims(self) -> Generator[BlockId, None, None]:
        """Yield the residents, the least probable first."""
        yield from sorted(self._resident, key=lambda block: self._scores[block.module][block.part])


def hit_ratio_divided(name: str, slots: int, steps: Collection[TokenExperts]) -> float:
    """Compute the hit ratio of ``slots`` that are divided evenly over the layers."""
    layers = max(map(len, steps))
    lost = uses = 0
    for layer in range(layers):
        mine = [[[*step][layer]] for step in steps]
        uses += sum(len(wanted) for (wanted,) in mine)
        lost += sum(len(absent) for (absent,) in misses(EVICTION[name], slots // layers, mine))
    return 1 - lost / uses


def policies(routes: Routes, steps: Collection[TokenExperts]) -> Iterator[tuple[str, Policy]]:
    """Yield each policy with its name."""
    future = [block for step in steps for wanted in step for block in wanted]
    yield from EVICTION.items()
    if all(layer.codes is not None for layer in routes.layers):
        yield "router", lambda route: RouterScores(routes)
    yield "auto, wrong", lambda route: Auto([lambda: Inverted(route), LRU])
    yield "rest known", lambda route: RestKnown(route, steps)
    yield "belady", lambda route: Belady(future)


def main() -> None:
    """Compute the hit ratios of all policies on all traces, and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+")
    parser.add_argument(
        "--shares", type=float, nargs="+", default=(12.5, 25, 50), help="cache sizes, %% of the experts"
    )
    parser.add_argument("--tokens", type=int, default=4000, help="of each trace")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    options = parser.parse_args()
    found: dict[str, dict[str, list[float]]] = {}
    for trace in options.traces:
        routes = Routes.load(trace)
        steps = list(routes.steps())[: options.tokens]
        experts = sum(layer.experts for layer in routes.layers)
        sizes = [round(experts * share / 100) for share in options.shares]
        ratios = {name: [hit_ratio(make, size, steps) for size in sizes] for name, make in policies(routes, steps)}
        found[trace.stem] = ratios | {"lfu, even": [hit_ratio_divided("lfu", size, steps) for size in sizes]}
    tables = []
    for name, ratios in found.items():
        lru, best = ratios["lru"], ratios["belady"]
        rows = [
            (
                policy,
                *(
                    f"{hit:.3f}, {(hit - low) / (high - low):.0%}"
                    for hit, low, high in zip(hits, lru, best, strict=True)
                ),
            )
            for policy, hits in sorted(ratios.items(), key=lambda item: sum(item[1]))
        ]
        columns = ("", *(f"{share:g} % of the experts" for share in options.shares))
        tables.append(Table(f"{name}: hit ratio, and how much of the way from LRU to Belady is closed", columns, rows))
    publish(tables, {"hit_ratios": found}, json_file=options.json, markdown=options.markdown)


if __name__ == "__main__":
    main()
