"""The memory and the flash that all KV pages of a loaded model share: slots, write-back, reads."""

import contextlib
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import xxhash

from ....kernels.devices.base import Device
from ....kernels.memory.arena import Arena
from ....kernels.waiting import no_waiting
from ....tiering.errors import BudgetTooSmall, Closed, FlashFull, PenstockError, ReadError
from ....tiering.kv.extents import EXTENT, Places
from ....tiering.kv.memory import RING, PageMemory
from ....tiering.kv.pages import BlockTable, Page, runs
from ....tiering.policy.placement.memory_split import MemoryShare
from ....tiering.units import format_size
from ...tracing.recorder import Recorder
from .spill import Spill

WRITE_EARLY = 3 / 4
"""Share of what may be kept in memory above which pages are written to flash as soon as they are sealed."""


@dataclass(slots=True)
class PoolCounters:
    """What happened since the model was loaded; bytes, seconds."""

    pages_read: int = 0
    bytes_read: int = 0
    reads: int = 0
    pages_written: int = 0
    bytes_written: int = 0
    stall_seconds: float = 0.0
    """Seconds that computing waited for pages to be read, or for room."""
    drive_seconds: float = 0.0
    """Seconds in which at least one read was under way."""


@dataclass(frozen=True, slots=True)
class PoolUsage:
    """A snapshot; bytes. ``host_bytes`` of ``host_budget`` are in use, ``flash_bytes`` of the file. ``host_limit`` is
    what memory pressure leaves of the budget."""

    host_bytes: int = 0
    host_budget: int = 0
    host_limit: int = 0
    flash_bytes: int = 0
    counters: PoolCounters = field(default_factory=PoolCounters)


class PagePool:
    """Pages in ``capacity`` bytes of memory, and in ``spill`` up to ``flash_limit`` bytes. Thread-safe.

    Who computes on pages holds them: ``hold`` for those in memory, ``fetch`` for those that are read. ``release`` ends
    either; a page that was fetched leaves memory with its last use, unless there is room to stay.
    """

    def __init__(self, capacity: int, spill: Spill, flash_limit: int | None, *, floor: int | None = None) -> None:
        """``floor`` bytes of the memory stay when the machine runs short; None: all."""
        self.memory = PageMemory(capacity)
        self.part = MemoryShare(self.memory.capacity if floor is None else min(floor, capacity), self.memory.capacity)
        """Between which sizes ``resize`` may be called."""
        self.counters = PoolCounters()
        self.places = Places(flash_limit)
        self._spill = spill
        self._arena = Arena(max(1, self.memory.capacity))
        # Keeps the memory while somebody computes on addresses in it, past ``close``.
        self._memory: torch.Tensor | None = self._arena.tensor(0, torch.uint8, (self.memory.capacity,))
        self._pages: set[Page] = set()
        self._tracks: Counter[int] = Counter()
        """Bytes of the pages that there are, in memory or not, by track."""
        self.freed: Callable[[Page], None] | None = None
        """Is told, under the pool's lock, of pages that nobody has any more, if anybody is to know."""
        self._held = 0
        """Uses of pages under way, of those that compute."""
        # Entered by whoever the garbage collector interrupts: what it does here never waits.
        self._changed = threading.Condition(threading.RLock())
        self._orphans: deque[Page] = deque()
        self._unreserved: deque[int] = deque()
        self._coming: dict[Page, Exception | None] = {}  # being read, or read and not asked for yet
        self._landed: set[Page] = set()
        self._dirty: deque[Page] = deque()
        self._writing: set[Page] = set()
        self.given_up = 0
        """Pages that were read ahead, and left memory before anybody looked at them."""
        self._trouble: PenstockError | None = None
        self._reading, self._reads, self._since = 0, 0, 0.0
        self.recorder: Recorder | None = None
        """Who takes notes, if anybody does."""
        self._closed = False
        self._writer = threading.Thread(target=self._write_back, name="penstock-kv-writer", daemon=True)
        self._writer.start()

    # --- pages come and go ------------------------------------------------------------------------------------------

    def new(self, track: BlockTable, index: int, size: int, format: object, *, score: float = 0.0) -> Page:
        """An open page of ``size`` zero bytes, to be number ``index`` of ``track``; ``score`` is its attention score.
        Raises BudgetTooSmall, FlashFull, ReadError."""
        page = Page(size, format, track.number, index, attention_score=score)
        with self._lock():
            self._check()
            self._find_room(page)
            self._pages.add(page)
            self._tracks[page.track] += page.size
        self.view(page).zero_()  # behind the last token there shall be numbers, not NaN
        return page

    def seal(self, page: Page) -> None:
        """``page`` is full: it will not change, and may leave memory."""
        with self._lock():
            page.sealed = True
            self.memory.keep(page)
            if self.memory.kept_bytes > WRITE_EARLY * (self.memory.limit - self.memory.ring):
                with contextlib.suppress(FlashFull):  # there is room in memory yet
                    self._store(page)

    def drop(self, pages: Sequence[Page]) -> None:
        """One track less has each of ``pages``; those that none has are gone."""
        with self._lock():
            for page in pages:
                self._drop(page)

    def abandon(self, pages: Sequence[Page]) -> None:
        """As ``drop``, soon; may be called by the garbage collector, from the middle of anything."""
        self._orphans.extend(pages)

    def share(self, pages: Sequence[Page]) -> None:
        """One track more has each of ``pages``."""
        with self._lock():
            for page in pages:
                page.refs += 1

    def score(self, pages: Sequence[Page], scores: Sequence[float], *, anew: bool = False) -> None:
        """Add ``scores`` to the attention scores of ``pages``; ``anew``: in place of what they had."""
        with self._lock():
            for page, score in zip(pages, scores, strict=True):
                page.attention_score = score if anew else page.attention_score + score

    @property
    def most(self) -> int:
        """Bytes that are read at once, at most."""
        return min(EXTENT, self.memory.ring // 4)

    def reserve(self, size: int) -> None:
        """Take ``size`` bytes of the memory for something else; a negative number gives them back. Raises
        BudgetTooSmall."""
        with self._lock():
            self.memory.reserve(size)
            while self.memory.lacking > 0 and size > 0:
                if self._evict_one():
                    continue
                if self._stuck():
                    if not self.memory.is_short:
                        return
                    self.memory.reserve(-size)
                    raise BudgetTooSmall(
                        f"[kv] host of {format_size(self.memory.capacity)} has no room for what sums up the keys of "
                        'this context; raise it, or take [kv] attention = "exact"'
                    )
                self._wait()

    def lock_pages(self, device: Device) -> bool:
        """Keep the memory in place for ``device`` to fetch from; whether the system lets it."""
        return device.lock_pages(self._arena)

    def abandon_reserve(self, size: int) -> None:
        """As ``reserve(-size)``, soon; may be called by the garbage collector."""
        self._unreserved.append(size)

    # --- using them -------------------------------------------------------------------------------------------------

    def view(self, page: Page) -> torch.Tensor:
        """The bytes of ``page``, in memory and held, or open: uint8 [size]."""
        assert page.slot is not None
        return self._arena.tensor(page.slot, torch.uint8, (page.size,))

    def address(self, page: Page) -> int:
        """Where the bytes of ``page`` are, in memory and held, or open."""
        assert page.slot is not None
        return self._arena.address + page.slot

    def hold(self, pages: Sequence[Page]) -> list[Page]:
        """Those of ``pages`` that are in memory, each of them held; not those being read."""
        with self._lock():
            self._check()
            here = [page for page in pages if page.slot is not None and page not in self._coming]
            self._lease(here)
            return here

    def release(self, pages: Sequence[Page]) -> None:
        """Give back one use of each of ``pages``."""
        with self._lock():
            self._release(pages)

    def read_ahead(self, pages: Sequence[Page]) -> int:
        """Start to read those of ``pages``, in their order, that are not in memory, as far as there is room in the ring
        now; how many of ``pages`` need no further asking."""
        with self._lock():
            self._check()
            done = 0
            for run in runs(pages, self.most):
                wanted = [page for page in run if page.slot is None and page.stored and page.refs]
                if wanted and not self._start(wanted):
                    return done
                done += len(run)
            return done

    def fetch(self, pages: Sequence[Page]) -> list[Page]:
        """``pages``, read and held; of a run that can be read at once. Waits. Raises ReadError, BudgetTooSmall."""
        with self._lock():
            while True:
                self._check()
                absent = [page for page in pages if page.slot is None]
                if not absent or self._start(absent):
                    break
                self._make_room_to_pass(sum(page.size for page in absent))
            self._lease(pages)  # now, so that nobody gives them up
            while any(page in self._coming and page not in self._landed for page in pages):
                self._wait()
            problems = [problem for page in pages if (problem := self._coming.get(page)) is not None]
            if problems or self._closed:
                self._give_back_unseen(pages)
                self._check()
                if isinstance(problems[0], PenstockError):
                    raise problems[0]
                raise ReadError(
                    f"KV pages cannot be read back from flash ({problems[0]}); nothing was computed on them. Try it "
                    "again; if it stays so, see to the drive that [store] path is on"
                ) from problems[0]
            for page in pages:
                self._coming.pop(page, None)
                self._landed.discard(page)
            return list(pages)

    def usage(self) -> PoolUsage:
        """What is in use now, and what has happened."""
        with self._lock():
            counters = replace(self.counters)
            memory = self.memory
            return PoolUsage(memory.used, memory.capacity, memory.limit, self.places.used, counters)

    # --- under pressure ---------------------------------------------------------------------------------------------

    @property
    def limit(self) -> int:
        """Bytes of memory that may be used now."""
        return self.memory.limit

    @property
    def held(self) -> int:
        """Bytes of memory that the system may have given us."""
        return self.memory.held

    @property
    def wanted(self) -> int:
        """Bytes of memory with which all pages that there are would have room, in sixteenths of the capacity."""
        least = self._tracks.total() / (1 - RING) + self.memory.reserved
        return -(-int(least) * 16 // self.memory.capacity) * self.memory.capacity // 16

    def resize(self, limit: int) -> None:
        """Use ``limit`` bytes of memory from now on. What lies beyond leaves as soon as nobody needs it there."""
        with self._lock():
            if not self._closed:
                for span in self.memory.resize(limit):
                    self._arena.discard(*span)
                while any(map(self.memory.is_beyond, self._landed)) and self._give_up_early_read():
                    pass
                self._changed.notify_all()

    def check_integrity(self) -> None:
        """Raises AssertionError where the books do not balance."""
        with self._lock():
            self.memory.check_integrity(self._pages)
            self.places.check_integrity(self._pages)
            assert self._landed <= self._coming.keys() <= self._pages
            assert all(page.passing for page in self._coming)
            busy = {*self._dirty, *self._writing}
            assert all(page.leases and page.slot is not None and page.place is not None for page in busy)
            for page in self._pages:
                assert page.slot is not None or page.stored, "its bytes are nowhere"
                assert page.refs > 0 or page.leases > 0 or page in self._coming, "nobody has it"
            assert sum(page.leases for page in self._pages) == self._held + len(busy)
            assert self._tracks.total() == sum(page.size for page in self._pages)

    def close(self) -> None:
        """Stop; all pages are gone. Waits for reads and writes under way. Idempotent."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            while self._reading or self._writing:
                self._changed.wait()
        self._writer.join()
        self._spill.close()
        self._arena.close()
        with self._changed:
            if not self._held:
                self._memory = None

    # --- inside, under the lock -------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with no_waiting, self._changed:
            while self._orphans:
                self._drop(self._orphans.popleft())
            while self._unreserved:
                self.memory.reserve(-self._unreserved.popleft())
            yield
            self._retreat()

    def _check(self) -> None:
        if self._closed:
            raise Closed("this model was closed, and its KV with it; load it again")

    def _check_writes(self) -> None:
        """Raises what went wrong with the last write: there is no room without it."""
        if self._trouble is not None:
            trouble, self._trouble = self._trouble, None
            raise trouble

    def _stuck(self) -> bool:
        """Whether nothing is under way that could make room. Raises what keeps it from being made."""
        self._check()
        self._check_writes()
        return not (self._dirty or self._writing or self._held)

    def _lease(self, pages: Sequence[Page]) -> None:
        self._held += len(pages)
        for page in pages:
            page.leases += 1

    def _give_back_unseen(self, pages: Sequence[Page]) -> None:
        """As ``release``, of pages that could not be read, or that nobody wants any more."""
        for page in pages:
            if page in self._coming and page.leases == 1:  # else somebody else is to hear of it yet
                del self._coming[page]
                self._landed.discard(page)
        self._release(pages, stay=False)

    def _release(self, pages: Sequence[Page], *, stay: bool = True) -> None:
        """``stay``: their bytes are right, and may be kept."""
        self._held -= len(pages)
        for page in pages:
            page.leases -= 1
            if not page.leases and page.passing and not (stay and page.refs and self._stays(page)):
                self._vacate(page)
            if not page.refs and not page.leases:
                self._free(page)
        if self._closed and not self._held:
            self._memory = None
        self._changed.notify_all()

    def _stays(self, page: Page) -> bool:
        return self.memory.stay(page, len(self._tracks)) or self._retained(page)

    def _vacate(self, page: Page) -> None:
        """``page`` leaves memory, and beyond the limit the memory itself goes."""
        slot, is_beyond = page.slot, self.memory.is_beyond(page)
        self.memory.vacate(page)
        if is_beyond and slot is not None and not self._closed:
            self._arena.discard(slot, page.size)

    def _retreat(self) -> None:
        """Pages beyond the limit leave, or are written to."""
        if self.memory.held > self.memory.limit and not self._closed:
            for page in self.memory.beyond():
                if page.stored:
                    self.memory.forget(page)
                    self._vacate(page)
                else:
                    with contextlib.suppress(PenstockError):  # it stays where it is
                        self._store(page)

    def _wait(self) -> None:
        start = time.monotonic()
        self._changed.wait()
        end = time.monotonic()
        self.counters.stall_seconds += end - start
        if (recorder := self.recorder) is not None:
            recorder.kv_stall(start, end)

    def _find_room(self, page: Page) -> None:
        while not self.memory.place(page, passing=False):
            if self._evict_one() or self._give_up_early_read():
                continue
            stuck = self._stuck()
            if not (self._dirty or self._writing) and self.memory.place(page, passing=False, beyond=True):
                return  # what has room in the whole budget does not fail for a limit, nor wait for who holds pages
            if stuck:
                raise BudgetTooSmall(
                    f"[kv] host of {format_size(self.memory.capacity)} is too little for the newest tokens of all "
                    "layers and sequences at once; raise it, or compute fewer sequences at a time"
                )
            self._wait()

    def _evict_one(self) -> bool:
        """Let the best victim go; whether there was any to go at once."""
        unwritten: list[Page] = []
        for page in self.memory.victims():
            if page.stored:
                self.memory.forget(page)
                self._vacate(page)
                return True
            if sum(other.size for other in unwritten) < EXTENT:
                unwritten.append(page)
        for page in reversed(unwritten):  # in the order of their tokens
            try:
                self._store(page)
            except FlashFull:
                if not (self._dirty or self._writing):
                    raise
                break
        return False

    def _retained(self, page: Page) -> bool:
        """Whether ``page``, which has passed, stays in the place of a colder one: of one that is on flash. What is not
        yet will be, for the next time."""
        other = self.memory.colder(page) if page.attention_score else None
        if other is not None and not other.stored:
            with contextlib.suppress(FlashFull):
                self._store(other)
        elif other is not None:
            self.memory.replace(other, page)
            return True
        return False

    def _give_up_early_read(self) -> bool:
        """Let go of what has been read and will be needed last; whether there was any."""
        for page in reversed(self._coming):
            if page in self._landed and not page.leases:
                del self._coming[page]
                self._landed.discard(page)
                self._vacate(page)
                self.given_up += 1
                return True
        return False

    def _make_room_to_pass(self, size: int) -> None:
        crowded = self.memory.passing_bytes + size > self.memory.ring  # else the room is in pieces
        if self._give_up_early_read() or (not crowded and self._evict_one()):
            return
        if not self.memory.passing_bytes and self._stuck():
            raise BudgetTooSmall(f"[kv] host has no room for pages of {format_size(size)} to pass; raise it")
        self._wait()

    def _start(self, pages: Sequence[Page]) -> bool:
        """Start a read of ``pages``, neighbours on flash or not; whether there was room for all of them."""
        placed: list[Page] = []
        for page in pages:
            if not self.memory.place(page, passing=True):
                for other in placed:
                    self._vacate(other)
                return False
            placed.append(page)
        for run in runs(pages, self.most):
            self._read(run)
        return True

    def _read(self, run: list[Page]) -> None:
        for page in run:
            self._coming[page] = None
        if not self._reading:
            self._since = time.monotonic()
        self._reading += 1
        views = [self._bytes(page) for page in run]
        number, self._reads = self._reads, self._reads + 1
        if (recorder := self.recorder) is not None:
            recorder.kv_started(number, len(run), sum(page.size for page in run))

        def landed(problem: Exception | None) -> None:
            if problem is None:
                wrong = [
                    page
                    for page, view in zip(run, views, strict=True)
                    if xxhash.xxh3_64_intdigest(view) != page.checksum
                ]
                if wrong:
                    problem = ReadError(
                        "KV pages on flash are not what was written, and nothing was computed on them: the drive or "
                        "its memory is damaged. Compute the context again, with [store] path on another drive"
                    )
            with self._changed:
                if (recorder := self.recorder) is not None:
                    recorder.kv_landed(number, problem is not None)
                self._reading -= 1
                if not self._reading:
                    self.counters.drive_seconds += time.monotonic() - self._since
                self.counters.reads += 1
                if problem is None:
                    self.counters.pages_read += len(run)
                    self.counters.bytes_read += sum(page.size for page in run)
                for page in run:
                    if page in self._coming:
                        self._coming[page] = problem
                        self._landed.add(page)
                    if not page.refs and not page.leases:
                        self._coming.pop(page, None)
                        self._landed.discard(page)
                        self._free(page)
                self._changed.notify_all()

        assert run[0].place is not None
        try:
            self._spill.read(run[0].place, views, landed)
        except (OSError, ValueError) as error:  # not even begun
            landed(error)

    def _store(self, page: Page) -> None:
        """Have ``page`` written to flash, soon."""
        if page.place is None:
            place = self.places.take(page)
            try:
                self._spill.reserve(self.places.length)
            except PenstockError:
                self.places.release(place)
                raise
            page.place = place
            page.leases += 1
            self._dirty.append(page)
            self._changed.notify_all()

    def _write_back(self) -> None:
        while True:
            with self._changed:
                while not self._dirty and not self._closed:
                    self._changed.wait()
                if self._closed:
                    for page in self._dirty:
                        page.leases -= 1
                    self._dirty.clear()
                    return
                run = runs([*self._dirty], EXTENT)[0]
                for _ in run:
                    self._dirty.popleft()
                self._writing.update(run)
                views = [self._bytes(page) for page in run]
            problem: PenstockError | None = None
            try:
                for page, view in zip(run, views, strict=True):
                    page.checksum = xxhash.xxh3_64_intdigest(view)
                assert run[0].place is not None
                self._spill.write(run[0].place, views)
            except PenstockError as error:
                problem = error
            with self._changed:
                for page in run:
                    page.leases -= 1
                    self._writing.discard(page)
                    if problem is None:
                        page.stored = True
                        self.counters.pages_written += 1
                        self.counters.bytes_written += page.size
                    elif page.place is not None:
                        self.places.release(page.place)
                        page.place = None
                    if not page.refs and not page.leases:
                        self._free(page)
                if problem is None:
                    self._retreat()
                self._trouble = problem
                self._changed.notify_all()

    def _drop(self, page: Page) -> None:
        page.refs -= 1
        if page.refs:
            return
        if page in self._landed and not page.leases:
            self._coming.pop(page)
            self._landed.discard(page)
        if not page.leases and page not in self._coming:
            self._free(page)

    def _free(self, page: Page) -> None:
        """Nobody has ``page`` any more, and nobody uses it."""
        if self.freed is not None:
            self.freed(page)
        if page.slot is not None:
            self.memory.forget(page)
            self._vacate(page)
        if page.place is not None:
            self.places.release(page.place)
            page.place = None
        self._pages.discard(page)
        self._tracks[page.track] -= page.size
        if not self._tracks[page.track]:
            del self._tracks[page.track]

    def _bytes(self, page: Page) -> memoryview:
        assert page.slot is not None
        return self._arena.view(page.slot, page.size)
