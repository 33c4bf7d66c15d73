"""Streams that run at once stay close together, so that what is read for one of them serves them all (pure).

A stream that runs ahead evicts what those behind it come to next; soon everything is read once for each of them. Close
together they all use a block while it is here (sharing one scan among many: "Cooperative Scans: Dynamic Bandwidth
Sharing in a DBMS").
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from itertools import accumulate, pairwise

from ...events import Stream
from .module_order import Route

PATIENCE = 0.25
"""Seconds that a stream ahead of others waits for them before a layer, when none of them moves: what holds them up may
be something else than computing."""


class Convoy:
    """How far the running streams are apart on ``route``, where ``lengths`` are the bytes of the modules that count."""

    def __init__(self, route: Route, lengths: Mapping[str, int]) -> None:
        self._route = route
        self._starts = list(accumulate((lengths.get(module, 0) for module in route.places), initial=0))

    def lead(self, stream: Stream, module: str) -> int:
        """Bytes by which ``stream``, which comes to ``module`` now, is ahead of the last one that runs; 0 outside."""
        streams, length = self._route.streams, self._starts[-1]
        if stream not in streams or not length:
            return 0
        places = {other: self._starts[at + 1] % length for other, at in streams.items()}
        return leads(places | {stream: self._starts[self._route.places[module]] % length}, length)[stream]


class Convoys:
    """The convoys of the regions whose blocks come and go. Who is so far ahead that it holds up the others had better
    wait for them."""

    def __init__(self, route: Route, regions: Iterable[str]) -> None:
        self._route, self._regions = route, tuple(regions)
        self._convoys: dict[str, Convoy] = {}

    def measure(self, blocks: Iterable[tuple[str, str, int]]) -> None:
        """``blocks`` (region, module, bytes) are those that there are."""
        lengths = {region: Counter[str]() for region in self._regions}
        for region, module, length in blocks:
            if region in lengths:
                lengths[region][module] += length
        self._convoys = {region: Convoy(self._route, lengths[region]) for region in lengths}

    def hurries(self, stream: Stream, module: str, limits: Mapping[str, int], holding: Collection[str]) -> bool:
        """Whether ``stream``, which comes to ``module``, had better wait. ``limits`` are the bytes of each region, of
        which an eighth may lie between streams: the rest is for reading ahead. Who is ``holding`` some of one of these
        regions never waits: they may need it to come nearer."""
        ahead = (convoy.lead(stream, module) > limits[region] // 8 for region, convoy in self._convoys.items())
        return any(ahead) and not any(region in self._convoys for region in holding)


def leads(places: Mapping[Stream, int], length: int) -> dict[Stream, int]:
    """How far each stream is ahead of the last one, on a circle of ``length``.

    On a circle everybody is behind everybody. The last one is who has the longest empty stretch behind it: that way
    the least is waited for until all are together.
    """
    taken = sorted(set(places.values()))
    gaps = {after: after - before for before, after in pairwise([taken[-1] - length, *taken])}
    last = max(gaps, key=gaps.__getitem__)
    return {stream: (place - last) % length for stream, place in places.items()}
