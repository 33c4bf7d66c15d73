"""Which KV pages have a copy on the device (pure): the newest of every layer and sequence, evenly.

Pages go up when they are full, the keys and the values of the same tokens together. They come down by being forgotten
here: full pages never change, and host memory or flash has them in any case. As host memory keeps a context's oldest
pages, the two have different ones. Where there is no room, the oldest pages of what has most here give way.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ..planner.freelist import FreeList
from ..units import PAGE
from .pages import Page


@dataclass(slots=True, eq=False)
class Pair:
    """A page of ``keys`` and the page of ``values`` of the same tokens, with room on the device from byte ``at`` on:
    first for the keys, then for the values."""

    keys: Page
    values: Page
    at: int
    looks: int = 0
    """Who computes on the copy now."""
    gone: bool = False
    """Whether it was forgotten; its room is free when nobody looks at it any more."""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.keys.size + self.values.size

    @property
    def pages(self) -> tuple[Page, Page]:
        """Keys and values."""
        return self.keys, self.values


class DevicePages:
    """Room for pairs of pages in ``capacity`` bytes. A pair's room may be given to another one while the copy to it is
    under way: copies are made in the order in which rooms were given."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity // PAGE * PAGE
        self._free = FreeList(0, self.capacity)
        self._pairs: dict[Page, Pair] = {}
        self._tracks: dict[int, list[Pair]] = {}  # by track of keys: oldest first
        self._bytes: dict[int, int] = {}
        self._leaving: dict[Page, Pair] = {}  # by page of keys: forgotten, and looked at yet

    @property
    def used(self) -> int:
        """Bytes."""
        return self.capacity - self._free.free_bytes

    def give_room(self, keys: Page, values: Page, *, newer: int = 0) -> Pair | None:
        """Room for the copies of two full pages; None where older pages of theirs, or as many of others, had better
        stay, or are being looked at. ``newer`` bytes of their track, in pages newer than these, are about to come."""
        size = keys.size + values.size
        if newer + size > self.capacity or (newer and newer + size > self._level(keys.track)):
            return None
        while (at := self._free.allocate(size)) is None:
            victim = self._victim(keys, size)
            if victim is None:
                return None
            self.forget(victim.keys)
        assert keys not in self._pairs
        assert keys not in self._leaving
        pair = Pair(keys, values, at)
        self._pairs |= dict.fromkeys(pair.pages, pair)
        self._tracks.setdefault(keys.track, []).append(pair)
        self._bytes[keys.track] = self._bytes.get(keys.track, 0) + size
        return pair

    def landed(self, keys: Page) -> None:
        """The bytes of its pair are there, if they are wanted yet."""
        if (pair := self._pairs.get(keys)) is not None:
            for page in pair.pages:
                page.up = True

    def look(self, keys: Iterable[Page]) -> list[Pair]:
        """The pairs of those pages of ``keys`` whose bytes are there; they stay until ``looked``."""
        pairs = [self._pairs[page] for page in keys if page.up]
        for pair in pairs:
            pair.looks += 1
        return pairs

    def looked(self, keys: Iterable[Page]) -> None:
        """Nobody who got the pairs of ``keys`` from one ``look`` computes on them any more."""
        for page in keys:
            pair = self._pairs.get(page) or self._leaving[page]
            pair.looks -= 1
            if pair.gone and not pair.looks:
                del self._leaving[page]
                self._free.release(pair.at, pair.size)

    def forget(self, page: Page) -> None:
        """The copy of ``page``, and of the other page of its pair, is not needed any more, if there is one."""
        pair = self._pairs.get(page)
        if pair is None:
            return
        pair.gone = True
        for each in pair.pages:
            each.up = False
            del self._pairs[each]
        track = pair.keys.track
        self._tracks[track].remove(pair)
        self._bytes[track] -= pair.size
        if not self._tracks[track]:
            del self._tracks[track], self._bytes[track]
        if pair.looks:
            self._leaving[pair.keys] = pair
        else:
            self._free.release(pair.at, pair.size)

    def check_integrity(self, pages: Collection[Page]) -> None:
        """Raises AssertionError where the books do not agree with ``pages``, all that there are."""
        pairs = {*self._pairs.values()}
        assert self._pairs.keys() <= {*pages}, "what is gone has no copy"
        assert {page for page in pages if page.up} <= self._pairs.keys()
        assert all(self._pairs[page] is pair for pair in pairs for page in pair.pages)
        assert not any(pair.gone for pair in pairs)
        leaving = {*self._leaving.values()}
        assert all(pair.gone and pair.looks > 0 for pair in leaving)
        end = 0
        for pair in sorted(pairs | leaving, key=lambda pair: pair.at):
            assert pair.at >= end, "copies overlap"
            end = pair.at + pair.size
        assert end <= self.capacity
        assert sum(pair.size for pair in pairs | leaving) == self.used
        assert {pair for track in self._tracks.values() for pair in track} == pairs
        assert {number: sum(pair.size for pair in track) for number, track in self._tracks.items()} == self._bytes

    def _victim(self, keys: Page, size: int) -> Pair | None:
        """Who gives way to a pair of ``size`` bytes: the oldest of the track that would have most, if it is older."""
        with_it = self._bytes | {keys.track: self._bytes.get(keys.track, 0) + size}
        track = max(with_it, key=lambda number: (with_it[number], number == keys.track))
        pairs = (pair for pair in self._tracks.get(track, ()) if not pair.looks)
        return next((pair for pair in pairs if track != keys.track or pair.keys.index < keys.index), None)

    def _level(self, track: int) -> int:
        """Bytes that an even division of the capacity gives to ``track``, if it has use for that much."""
        rest = self.capacity
        others = sorted(size for number, size in self._bytes.items() if number != track)
        for done, size in enumerate(others):
            share = rest // (len(others) - done + 1)
            if size > share:
                return share
            rest -= size
        return rest
