"""The cycle of dense weights: prefetch follows it, eviction runs against it (pure).

Every token uses dense weights in the same order. LRU over a cycle larger than the cache never hits. Here the block
whose next use is furthest away goes first, which is the optimum for a known sequence
(Belady, "A study of replacement algorithms for a virtual-storage computer").
"""

from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator, Sequence

from ...events import Stream
from ...units import BlockId


class Cycle:
    """The order of use of the streamed dense blocks, and the position of each stream in it.

    The order starts as the one on flash. Each whole forward corrects it. Blocks can ``join`` and ``leave`` it, and come
    back to their place. It is also the Eviction policy of the streaming region.
    """

    name = "cycle"

    def __init__(self, order: Sequence[BlockId]) -> None:
        self._all = tuple(order)
        self._outside: set[BlockId] = set()
        self._set_order(order)
        self._next: dict[Stream, int] = {}  # index of the block that each stream uses next
        self._seen: dict[Stream, list[BlockId]] = {}
        self._resident: dict[BlockId, None] = {}  # in order of arrival: a set's order differs between runs

    def _set_order(self, order: Sequence[BlockId]) -> None:
        self.order = tuple(order)
        self._index = {block: index for index, block in enumerate(self.order)}

    def __contains__(self, block: BlockId) -> bool:
        return block in self._index

    def join(self, blocks: Iterable[BlockId]) -> None:
        """Stream ``blocks`` from now on; they are part of the whole order."""
        self._change(self._outside - set(blocks))

    def leave(self, blocks: Iterable[BlockId]) -> None:
        """Stream ``blocks`` no more."""
        self._change(self._outside | set(blocks))

    def _change(self, outside: set[BlockId]) -> None:
        if outside == self._outside:
            return
        place = {block: index for index, block in enumerate(self._all)}
        next_up = {s: self.order[n] if n < len(self.order) else None for s, n in self._next.items()}
        self._outside = outside
        self._set_order([block for block in self._all if block not in outside])
        places = [place[block] for block in self.order]
        for stream, block in next_up.items():
            self._next[stream] = len(places) if block is None else bisect_left(places, place[block])

    # --- what the streams do ----------------------------------------------------------------------------------------

    def begin(self, stream: Stream) -> None:
        self.end(stream)  # a pass under way is over
        self._next[stream] = 0
        self._seen[stream] = []

    def end(self, stream: Stream) -> None:
        self._next.pop(stream, None)
        seen = [block for block in dict.fromkeys(self._seen.pop(stream, ())) if block in self]
        used = set(seen)
        if not self._next and seen and seen != [block for block in self.order if block in used]:
            self._learn(seen + [block for block in self.order if block not in used])

    def _learn(self, order: Sequence[BlockId]) -> None:
        """Correct the order to ``order``. Blocks outside stay behind the block that they came after."""
        after: dict[BlockId | None, list[BlockId]] = {}
        leader: BlockId | None = None
        for block in self._all:
            if block in self._outside:
                after.setdefault(leader, []).append(block)
            else:
                leader = block
        whole = after.get(None, [])
        for block in order:
            whole += [block, *after.get(block, ())]
        self._all = tuple(whole)
        self._set_order(order)

    def advance(self, stream: Stream, block: BlockId) -> None:
        """``stream`` uses ``block`` now. Outside of a forward this is ignored."""
        index = self._index.get(block)
        if index is None or stream not in self._next:
            return
        self._next[stream] = index + 1
        self._seen[stream].append(block)

    # --- prefetch ---------------------------------------------------------------------------------------------------

    def distance(self, block: BlockId) -> int:
        """Uses of other blocks until the first stream uses ``block``.

        A block outside of the order comes last.
        """
        index, count = self._index.get(block), len(self.order)
        if index is None:
            return count
        if len(self._next) < 2:
            return (index - next(iter(self._next.values()), 0)) % count
        return min((index - position) % count for position in self._next.values())

    def upcoming(self) -> Iterator[BlockId]:
        """Blocks in the order in which they will be used, across the token boundary, each once."""
        count = len(self.order)
        positions = sorted({position % count for position in self._next.values()} or {0}) if count else []
        if len(positions) == 1:  # the common case, on the path of every release
            return iter(self.order[positions[0] :] + self.order[: positions[0]])
        return self._in_turn(positions)

    def _in_turn(self, positions: Sequence[int]) -> Iterator[BlockId]:
        count = len(self.order)
        given: set[int] = set()
        for step in range(count):
            for position in positions:
                index = (position + step) % count
                if index not in given:
                    given.add(index)
                    yield self.order[index]

    # --- eviction ---------------------------------------------------------------------------------------------------

    def used(self, blocks: Sequence[BlockId]) -> None:
        """Positions rank the blocks, so uses are ignored."""

    def inserted(self, block: BlockId) -> None:
        self._resident[block] = None

    def removed(self, block: BlockId) -> None:
        del self._resident[block]

    def tick(self) -> None:
        """The cycle needs no clock."""

    def victims(self) -> Generator[BlockId, None, None]:
        yield from [block for block in self._resident if block not in self._index]
        yield from filter(self._resident.__contains__, reversed(tuple(self.upcoming())))
