"""The pool of KV pages on drives that fail, lie, are full or slow; with threads that want the same room."""

import errno
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

import penstock
from penstock.kernels.io.directio import DirectFile, Segment
from penstock.kernels.io.reading import Threads
from penstock.kernels.waiting import Then
from penstock.runtime.kv.pages.pool import PagePool
from penstock.runtime.kv.pages.spill import Spill
from penstock.tiering.errors import Closed
from penstock.tiering.kv.extents import EXTENT
from penstock.tiering.kv.pages import BlockTable, Page
from penstock.tiering.units import PAGE
from tests.support.paged import settle

Outcome = Callable[[Sequence[Segment], Exception | None], Exception | None]


class Faulty:
    """A reader whose reads come to what ``outcome`` makes of them, when ``gate`` is open."""

    def __init__(self) -> None:
        self._inner = Threads(2)
        self.outcome: Outcome = lambda _, problem: problem
        self.gate = threading.Event()
        self.gate.set()

    def submit(self, file: DirectFile, segments: Sequence[Segment], then: Then) -> None:
        def done(problem: Exception | None) -> None:
            self.gate.wait(60)
            then(self.outcome(segments, problem))

        self._inner.submit(file, segments, done)

    def close(self) -> None:
        self._inner.close()


@pytest.fixture
def reader() -> Faulty:
    return Faulty()


@pytest.fixture
def pool(tmp_path: Path, reader: Faulty) -> Iterator[PagePool]:
    """Memory for 16 pages, 4 of them passing."""
    pool = PagePool(16 * PAGE, Spill(tmp_path, reader), None)
    yield pool
    reader.gate.set()
    pool.close()


def filled(pool: PagePool, count: int, track: BlockTable | None = None) -> BlockTable:
    """``count`` sealed pages whose bytes are their number."""
    track = track or BlockTable()
    for index in range(count):
        page = pool.new(track, index, PAGE, None)
        track.pages.append(page)
        pool.view(page).fill_(index % 251)
        pool.seal(page)
    return track


def looked_at(pool: PagePool, pages: Sequence[Page]) -> None:
    """One after the other, with the right bytes in them."""
    for page in pages:
        held = pool.hold([page]) or pool.fetch([page])
        assert bool((pool.view(page) == page.index % 251).all())
        pool.release(held)


def test_what_does_not_fit_comes_back(pool: PagePool) -> None:
    track = filled(pool, 100)
    looked_at(pool, track.pages)
    settle(pool)
    assert pool.usage().counters.pages_read > 80
    pool.drop(track.pages)
    settle(pool)
    assert (pool.memory.used, pool.places.used) == (0, 0)


def flip(segments: Sequence[Segment], problem: Exception | None) -> Exception | None:
    segments[0].buffer[77] ^= 1
    return problem


FAULTS: dict[str, Outcome] = {
    "EIO": lambda *_: OSError(errno.EIO, "Input/output error"),
    "short": lambda *_: EOFError("the file ends"),
    "flip": flip,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("ahead", [True, False])
def test_a_failed_read_is_an_error_and_can_be_tried_again(
    pool: PagePool, reader: Faulty, fault: str, ahead: bool
) -> None:
    track = filled(pool, 60)
    settle(pool)
    missing = [page for page in track.pages if page.slot is None][:2]
    reader.outcome = FAULTS[fault]
    if ahead:
        assert pool.read_ahead(missing) == 2
    with pytest.raises(penstock.ReadError, match=r"nothing was computed on them.*\[store\] path"):
        pool.fetch(missing)
    settle(pool)
    assert not pool.planner.books.held
    reader.outcome = lambda _, problem: problem
    looked_at(pool, track.pages)


def test_what_is_read_when_its_cache_goes_is_there_until_it_lands(pool: PagePool, reader: Faulty) -> None:
    """No leak: the drive writes into this memory yet."""
    track = filled(pool, 60)
    settle(pool)
    missing = [page for page in track.pages if page.slot is None][:2]
    reader.gate.clear()
    assert pool.read_ahead(missing) == 2
    pool.drop(track.pages)
    usage = pool.usage()
    assert (usage.host_bytes, usage.flash_bytes) == (2 * PAGE, EXTENT)
    reader.gate.set()
    settle(pool)
    usage = pool.usage()
    assert (usage.host_bytes, usage.flash_bytes) == (0, 0)


def test_a_page_takes_the_number_of_one_that_is_used_yet(pool: PagePool) -> None:
    """As after a crop: what was dropped keeps its place until nobody reads or writes it."""
    track = filled(pool, 60)
    settle(pool)
    stored = [page for page in track.pages if page.stored][:1]
    held = pool.hold(stored) or pool.fetch(stored)
    pool.drop(track.pages)
    again = filled(pool, 60, BlockTable(number=track.number))
    looked_at(pool, again.pages)
    assert bool((pool.view(held[0]) == held[0].index % 251).all())
    pool.release(held)
    settle(pool)
    looked_at(pool, again.pages)


def test_room_beyond_the_limit_is_not_waited_for(pool: PagePool) -> None:
    """The one page that could leave is held, maybe by who asks for room."""
    held = filled(pool, 1).pages
    pool.hold(held)
    pool.resize(8 * PAGE)  # 2 of them passing
    made: list[Page] = []

    def fill() -> None:
        made.extend(pool.new(BlockTable(), 0, PAGE, None) for _ in range(11))

    thread = threading.Thread(target=fill)
    thread.start()
    thread.join(20)
    stuck = thread.is_alive()
    pool.release(held)
    thread.join()
    assert not stuck
    assert len(made) == 11


def test_a_limit_of_flash(tmp_path: Path) -> None:
    pool = PagePool(16 * PAGE, Spill(tmp_path, Threads(1)), 1 << 20)
    with pytest.raises(penstock.FlashFull, match=r"\[kv\] flash"):
        filled(pool, 600)
    pool.check_integrity()
    pool.close()


def test_a_drive_that_is_full(small_drive: Path) -> None:
    """What is in memory and on the drive stays right, and there is room again when something goes."""
    pool = PagePool(16 * PAGE, Spill(small_drive, Threads(1), direct=False), None)
    first = filled(pool, 40)
    with pytest.raises(penstock.FlashFull, match=r"no room|full"):
        filled(pool, 600)
    settle(pool)
    looked_at(pool, first.pages)
    pool.close()


def test_threads_that_want_the_same_room(pool: PagePool, restless: None) -> None:
    tracks = [filled(pool, 30) for _ in range(4)]
    failed: list[BaseException] = []

    def work(track: BlockTable) -> None:
        try:
            for start in range(0, 30, 2):
                pool.read_ahead(track.pages[start : start + 6])
                looked_at(pool, track.pages[start : start + 2])
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work, args=(track,), daemon=True) for track in tracks * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert not failed
    settle(pool)


def test_closing_waits_for_reads_and_ends_whoever_waits(pool: PagePool, reader: Faulty) -> None:
    track = filled(pool, 60)
    settle(pool)
    missing = next(page for page in track.pages if page.slot is None)
    reader.gate.clear()
    ended: list[type[BaseException]] = []

    def fetch() -> None:
        try:
            pool.fetch([missing])
        except BaseException as error:
            ended.append(type(error))

    fetching, closing = threading.Thread(target=fetch), threading.Thread(target=pool.close)
    fetching.start()
    with pool._changed:
        assert pool._changed.wait_for(lambda: pool.planner.books.incoming.reads, 60)
    closing.start()
    reader.gate.set()
    for thread in (fetching, closing):
        thread.join(60)
        assert not thread.is_alive()
    assert ended in ([Closed], [])
    for use in (lambda: pool.hold([missing]), lambda: pool.read_ahead([missing]), lambda: filled(pool, 1)):
        with pytest.raises(Closed):
            use()


def test_memory_stays_while_it_is_computed_on(pool: PagePool) -> None:
    """Addresses are used without a tensor that keeps it."""
    track = filled(pool, 4)
    held = pool.hold(track.pages)
    pool.close()
    assert pool._memory is not None
    pool.release(held)
    assert pool._memory is None
