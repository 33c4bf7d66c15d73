"""A simulated compute thread: it causes events in the order of a real one (pure).

Follows runtime/modules/attach.py and runtime/experts/experts.py. Blocks that are always in memory are leased when the
model is loaded. The kept blocks of a layer are leased together while all are resident. Otherwise each is leased for its
module, like a streamed block. Resident experts are computed while others are read. Before its first wait, a layer tells
the planner which blocks come next.
"""

from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from enum import Enum, auto

from ..events import PINNING_STREAM, Acquire, Begin, Cancel, End, Event, Expect, Grant, Refuse, Release, Stream
from ..planner.planner import Planner
from ..planner.regions import KEPT, PINNED
from ..policy.prefetch.expert_window import at_a_time
from ..units import BlockId, residuals
from .devices import Memory
from .kv_streams import Attention
from .workload import Layer, Pass, Workload


class Wait(Enum):
    """Reasons to wait: an answer to a request, the progress of other streams, for a limited time, or pages of KV."""

    ANSWER = auto()
    OTHERS = auto()
    PAGES = auto()


Steps = Generator[float | Wait, bool, None]
"""Yields seconds to compute, or a reason to wait. For ``OTHERS``, it is sent whether they made progress."""


class _Refused(Exception):
    """A block, or a page, was refused."""


class Walker:
    """One stream. The runner of its steps puts answers to its requests into ``inbox``."""

    def __init__(
        self,
        number: Stream,
        planner: Planner,
        post: Callable[[Event], None],
        tickets: Iterator[int],
        memory: Memory,
        attention: Attention | None = None,
    ) -> None:
        self.number, self.inbox = number, deque[Grant | Refuse]()
        self.ticket = 0
        """The ticket of the latest request."""
        self.attention = attention
        """Its context in pages; None without one."""
        self._planner, self._post, self._tickets, self._memory = planner, post, tickets, memory
        self._lengths = {block: home.extent.length for block, home in planner.homes.items()}
        self._pinned = {block: home for block, home in planner.homes.items() if home.region == PINNED}
        self._kept = {block: home for block, home in planner.homes.items() if home.place is not None}
        self._residuals = residuals(planner.homes)
        self._leased: dict[BlockId, tuple[BlockId, ...]] = {}  # experts with their resident residuals
        self._left = 0  # answers to come
        self._owed = 0.0  # seconds computed since the last event

    # --- a model ----------------------------------------------------------------------------------------------------

    def load(self) -> Steps:
        """Load the blocks that stay in memory."""
        yield from self._acquire(list(self._pinned), stream=PINNING_STREAM)
        while self._left:
            yield from self._arrival()
        for block in self._kept:
            yield from self._lease([block])
            self._post(Release(self.number, (block,)))

    def make(self, workload: Workload, each: Pass) -> Generator[float | Wait, bool, bool]:
        """Make one pass; whether it failed because a block was refused."""
        self._post(Begin(self.number))
        failed = False
        try:
            yield from self._forward(workload, each)
        except _Refused:
            failed = True
        self._post(End(self.number))
        return failed

    def _forward(self, workload: Workload, each: Pass) -> Steps:
        layers, guess_seconds = workload.layers, workload.guess_seconds
        after = [layer for layer in layers if layer.experts][1:]
        chosen, guessed, next_ones = iter(each.chosen), iter(each.guessed), iter(after)
        for layer in layers:
            together = yield from self._enter(layer)
            try:
                for number in layer.kv if each.attends else ():
                    yield from self._attend(number, workload)
                yield from self._dense(layer, each.tokens, together)
                self._owed += layer.seconds
                if layer.experts:
                    other, numbers = next(next_ones, None), next(guessed, ())
                    guess = [other.experts[number] for number in numbers] if other else []
                    wanted = [layer.experts[number] for number in next(chosen)]
                    residuals = [residual for block in wanted for residual in self._residuals.get(block, ())]
                    yield from self._experts(wanted, each, _Announcement(self, guess, guess_seconds, residuals))
                yield from self._flush()
            except _Refused:
                self._leave(together)
                raise
            self._leave(together)

    def _attend(self, number: int, workload: Workload) -> Steps:
        """Look at the context, in the layer with KV of this ``number``."""
        if self.attention is None:
            if workload.context is not None:  # all of it is in memory
                self._owed += self._memory.seconds(workload.context.size_of(number))
            return
        looks = self.attention.look(number)
        while True:
            try:
                wish = next(looks)
            except StopIteration as end:
                if not end.value:
                    raise _Refused from None
                return
            if wish is None:
                yield from self._flush()
                yield Wait.PAGES
            else:
                self._owed += wish
                yield from self._flush()

    def _leave(self, together: tuple[BlockId, ...]) -> None:
        """Release the leases of ``_enter``."""
        if together:
            self._post(Release(self.number, together))

    def _enter(self, layer: Layer) -> Generator[float | Wait, bool, tuple[BlockId, ...]]:
        """Lease the kept blocks of the layer, if all are in their places; returns the leased blocks."""
        kept = tuple(block for block in layer.dense if block in self._kept)
        return kept if kept and (yield from self._lease_resident(kept, KEPT)) else ()

    def _dense(self, layer: Layer, tokens: int, together: Collection[BlockId]) -> Steps:
        for block in layer.dense:
            if block in self._pinned or block in together:
                self._owed += self._memory.seconds(self._lengths[block], tokens)
                continue
            if block not in self._kept or self._kept[block].streamable:
                yield from self._lease([block])
            elif not (yield from self._lease_resident([block])):
                continue  # an embedding, read by row
            self._owed += self._memory.seconds(self._lengths[block], tokens)
            yield from self._flush()
            self._post(Release(self.number, (block,)))

    def _experts(self, chosen: Sequence[BlockId], each: Pass, announcement: "_Announcement") -> Steps:
        size = at_a_time(len(chosen), each.choices)
        rows = -(-each.choices // len(chosen)) if len(chosen) else 0  # tokens per expert, about
        for start in range(0, len(chosen), size):
            yield from self._acquire(chosen[start : start + size])
            arrived = self._here()
            if arrived and self._left:
                yield from self._products(arrived, rows)
                arrived = self._here()
            yield from announcement.make(chosen[start + size :])
            if arrived:
                yield from self._products(arrived, rows)
            while self._left:
                arrived = yield from self._arrival()
                yield from self._products([*arrived, *self._here()], rows)

    def _products(self, blocks: Sequence[BlockId], rows: int) -> Steps:
        leased = tuple(each for block in blocks for each in self._leased.pop(block))
        size = sum(self._lengths[block] for block in leased)
        self._owed += self._memory.overhead + self._memory.seconds(size, rows)
        yield from self._flush()
        self._post(Release(self.number, leased))

    # --- requests ---------------------------------------------------------------------------------------------------

    def _lease(self, blocks: Sequence[BlockId]) -> Steps:
        """Acquire ``blocks`` and wait for all of them."""
        yield from self._acquire(blocks)
        self._here()
        while self._left:
            yield from self._arrival()

    def _lease_resident(
        self, blocks: Sequence[BlockId], region: str | None = None
    ) -> Generator[float | Wait, bool, bool]:
        """Lease ``blocks`` if all are resident, and in ``region`` if given; whether they are."""
        yield from self._flush()
        slots = [self._planner.residency.slot(block) for block in blocks]
        if any(slot is None or region not in (None, slot.region) for slot in slots):
            return False
        self._request(blocks, self.number)
        self._here()
        return True

    def _acquire(self, blocks: Sequence[BlockId], stream: Stream | None = None) -> Steps:
        yield from self._flush()
        if self._planner.crowded and self._planner.hurries(self.number, blocks):
            while (yield Wait.OTHERS) and self._planner.hurries(self.number, blocks):
                pass
        self._request(blocks, self.number if stream is None else stream)

    def _request(self, blocks: Sequence[BlockId], stream: Stream) -> None:
        self.ticket, self._left = next(self._tickets), len(blocks)
        self._post(Acquire(self.ticket, stream, tuple(blocks)))

    def _arrival(self) -> Generator[float | Wait, bool, list[BlockId]]:
        """Wait for the next blocks."""
        if not self.inbox:
            yield Wait.ANSWER
        return [self._take()]

    def _here(self) -> list[BlockId]:
        """Take the blocks that have arrived."""
        return [self._take() for _ in range(len(self.inbox))]

    def _take(self) -> BlockId:
        answer = self.inbox.popleft()
        if isinstance(answer, Refuse):
            self._give_up()
            raise _Refused
        self._left -= 1
        if answer.block.kind == "expert":
            self._leased[answer.block] = answer.leased
        return answer.block

    def _give_up(self) -> None:
        """Cancel the request, and release what it was granted."""
        self._post(Cancel(self.ticket))
        untaken = tuple(block for answer in self.inbox if isinstance(answer, Grant) for block in answer.leased)
        self.inbox.clear()
        self._left = 0
        if untaken:
            self._post(Release(self.number, untaken))

    def expect(
        self, certain: Sequence[BlockId], guessed: Sequence[BlockId], seconds: float, residuals: Sequence[BlockId]
    ) -> Steps:
        """Tell the planner which blocks come next and which residuals help. The guess took ``seconds``."""
        self._owed += seconds
        yield from self._flush()
        self._post(Expect(self.number, tuple(certain), tuple(guessed), seconds, tuple(residuals)))

    @property
    def speculates(self) -> bool:
        """Whether the planner wants guesses."""
        return self._planner.speculation.active

    def _flush(self) -> Steps:
        """Let the time pass that was computed since the last event."""
        if self._owed:
            owed, self._owed = self._owed, 0.0
            yield owed


class _Announcement:
    """A layer's announcements of blocks that come next. The guess is made once, with the first of them."""

    def __init__(self, walker: Walker, guess: Sequence[BlockId], seconds: float, residuals: Sequence[BlockId]) -> None:
        self._walker, self._guess, self._seconds, self._residuals = walker, guess, seconds, residuals
        self._made: Sequence[BlockId] | None = None

    def make(self, certain: Sequence[BlockId]) -> Steps:
        """Announce ``certain`` blocks, the guess if it is wanted, and residuals."""
        seconds = 0.0
        if self._made is None:
            self._made = self._guess if self._walker.speculates else ()
            seconds = self._seconds if self._made else 0.0
        if certain or self._made or self._residuals:
            yield from self._walker.expect(certain, self._made, seconds, self._residuals)
