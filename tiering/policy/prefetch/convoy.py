"""Keeps concurrent streams close together, so that one read serves them all (pure).

A stream that runs ahead evicts the blocks that streams behind it need next. Soon every block is read once for each
stream. Streams that stay together use a block while it is resident. The idea of sharing one scan is from "Cooperative
Scans: Dynamic Bandwidth Sharing in a DBMS".
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, pairwise

from ...events import Stream
from .route import Route

PATIENCE = 0.25
"""Seconds that a leading stream waits before a layer when no other stream moves: something else may hold them up."""


class Convoy:
    """Distances between running streams on ``route``. ``lengths`` are the bytes of the modules that count."""

    def __init__(self, route: Route, lengths: Mapping[str, int]) -> None:
        self._route = route
        self._starts = list(accumulate((lengths.get(module, 0) for module in route.places), initial=0))

    def lead(self, stream: Stream, module: str) -> int:
        """Bytes by which ``stream``, now at ``module``, leads the last running stream; 0 outside of a forward."""
        streams, length = self._route.streams, self._starts[-1]
        if stream not in streams or not length:
            return 0
        places = {other: self._starts[at + 1] % length for other, at in streams.items()}
        return leads(places | {stream: self._starts[self._route.places[module]] % length}, length)[stream]


class Convoys:
    """One convoy for each region whose blocks come and go. A stream that leads by too much should wait."""

    def __init__(self, route: Route, regions: Iterable[str]) -> None:
        self._route, self._regions = route, tuple(regions)
        self._convoys: dict[str, Convoy] = {}

    def measure(self, blocks: Iterable[tuple[str, str, int]]) -> None:
        """Set the blocks that there are: (region, module, bytes) of each."""
        lengths = {region: Counter[str]() for region in self._regions}
        for region, module, length in blocks:
            if region in lengths:
                lengths[region][module] += length
        self._convoys = {region: Convoy(self._route, lengths[region]) for region in lengths}

    def hurries(self, stream: Stream, module: str, limits: Mapping[str, int], holding: Collection[str]) -> bool:
        """Whether ``stream``, now at ``module``, should wait for streams behind it.

        ``limits`` are the bytes of each region. An eighth of them may lie between streams; the rest is for reading
        ahead. A stream that is ``holding`` blocks of such a region never waits: others may need that room to catch up.
        """
        ahead = (convoy.lead(stream, module) > limits[region] // 8 for region, convoy in self._convoys.items())
        return any(ahead) and not any(region in self._convoys for region in holding)


def leads(places: Mapping[Stream, int], length: int) -> dict[Stream, int]:
    """The lead of each stream over the last one, on a circle of ``length``.

    On a circle every stream is behind every other. The last one is the stream with the longest empty stretch behind
    it. That choice waits least until all are together.
    """
    taken = sorted(set(places.values()))
    gaps = {after: after - before for before, after in pairwise([taken[-1] - length, *taken])}
    last = max(gaps, key=gaps.__getitem__)
    return {stream: (place - last) % length for stream, place in places.items()}
