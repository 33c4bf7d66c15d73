"""Experts that streams expect, and the outcome of guessed reads (pure).

A block read on a guess is *on trust*. When a stream wants it, the guess came true. When it is evicted, or no stream
expects it any more, the guess failed. ``Speculation`` is told of both.
"""

from collections.abc import Iterable, Mapping

from ..events import Expect, Purpose, Read, Stream
from ..policy.prefetch.speculation import Speculation
from ..units import BlockId
from .counters import Counters
from .residency import Residency


class Expectations:
    """The blocks that streams expect and have not asked for yet. True while there are any."""

    def __init__(self, counters: Counters, speculation: Speculation) -> None:
        """Guessed bytes are counted in ``counters``; savings and costs go to ``speculation``."""
        self._counters, self._speculation = counters, speculation
        self._expected: dict[Stream, dict[BlockId, Purpose]] = {}  # soonest first
        self._on_trust: dict[BlockId, int] = {}  # bytes
        self._flying: dict[int, bool] = {}  # guessed reads in flight: whether a demand waited beside them

    def __bool__(self) -> bool:
        return bool(self._expected)

    def __contains__(self, block: BlockId) -> bool:
        return any(block in expected for expected in self._expected.values())

    def of(self, purpose: Purpose) -> Iterable[BlockId]:
        """The blocks expected for ``purpose``: for certain, on a guess, or to refine a product."""
        return dict.fromkeys(b for blocks in self._expected.values() for b in blocks if blocks[b] is purpose)

    # --- streams ----------------------------------------------------------------------------------------------------

    def expect(self, event: Expect) -> None:
        """Replace the expectations of the event's stream."""
        self._speculation.made(event.seconds)
        for block in event.certain:
            self._came_true(block)
        self._expect_instead(
            event.stream,
            dict.fromkeys(event.residuals, Purpose.REFINE)
            | dict.fromkeys(event.guessed, Purpose.GUESS)
            | dict.fromkeys(event.certain, Purpose.CERTAIN),
        )

    def asked(self, stream: Stream, blocks: Iterable[BlockId]) -> None:
        """``stream`` asks for ``blocks``, expected or not."""
        expected = self._expected.get(stream)
        if expected is None:
            return
        for block in blocks:
            if expected.pop(block, None):
                self._came_true(block)
        if not expected:
            del self._expected[stream]

    def end(self, stream: Stream) -> None:
        """``stream`` expects nothing any more."""
        self._expect_instead(stream, {})

    # --- reads ------------------------------------------------------------------------------------------------------

    def started(self, read: Read) -> None:
        """``read``, on a guess, is under way."""
        self._counters.guess_bytes += read.size
        self._flying[read.read] = False
        self._on_trust.update((part.block, part.extent.length) for part in read.parts)

    def crowd(self) -> None:
        """A demand missed: it wants the drive beside the guessed reads in flight."""
        self._flying = dict.fromkeys(self._flying, True)

    def landed(self, read: Read, seconds: float) -> None:
        """``read`` has ended. The drive took ``seconds`` since the end of the last one."""
        self._speculation.drive(read.size, seconds)
        if read.purpose is Purpose.GUESS:
            self._speculation.landed(crowded=self._flying.pop(read.read))

    def unreadable(self, block: BlockId) -> None:
        """``block`` could not be read, which says nothing about a guess."""
        self._on_trust.pop(block, None)

    def evicted(self, block: BlockId) -> None:
        """``block`` was evicted."""
        if block in self._on_trust:
            self._speculation.failed(self._on_trust.pop(block))

    # --- guesses ----------------------------------------------------------------------------------------------------

    def _expect_instead(self, stream: Stream, blocks: dict[BlockId, Purpose]) -> None:
        before = self._expected.pop(stream, {})
        if blocks:
            self._expected[stream] = blocks
        for block in before:
            if block in self._on_trust and block not in self:
                self._speculation.failed(self._on_trust.pop(block))

    def _came_true(self, block: BlockId) -> None:
        """``block`` is wanted. If it was read on a guess, the guess came true."""
        size = self._on_trust.pop(block, 0)
        if size:
            self._counters.guess_bytes_used += size
            self._speculation.came_true(size)

    # --- the accounts -----------------------------------------------------------------------------------------------

    def check_integrity(self, residency: Residency, in_flight: Mapping[int, Read]) -> None:
        """Raise AssertionError unless blocks on trust are resident or loading, and expected, and guessed reads are in
        flight."""
        assert all(self._expected.values())
        assert all(not residency.absent(block) and block in self for block in self._on_trust)
        assert self._flying.keys() == {n for n, read in in_flight.items() if read.purpose is Purpose.GUESS}
