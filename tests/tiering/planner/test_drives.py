"""The planner over several drives: all are kept busy, none holds up another, and nothing is read in vain."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.tiering.events import Read
from penstock.tiering.planner.regions import EXPERTS, KEPT, PINNED, STREAM
from penstock.tiering.units import PAGE, BlockId
from tests.support.worlds.cases import reads
from tests.support.worlds.watch import Watch
from tests.support.worlds.worlds import World, lay_out

D = [BlockId("dense", f"d{n}") for n in range(12)]
X = [BlockId("expert", "m", n) for n in range(8)]


def watch(
    *blocks: tuple[BlockId, int, int], stream: int = 0, experts: int = 0, depth: int = 1, limit: int = 1
) -> Watch:
    """Blocks, their pages and drives; pages of the regions and of the longest read."""
    laid = [(block, EXPERTS if block in X else STREAM, pages) for block, pages, _ in blocks]
    capacity = {PINNED: 0, KEPT: 0, STREAM: stream * PAGE, EXPERTS: experts * PAGE}
    homes = lay_out(laid, drives=[drive for *_, drive in blocks])
    return Watch(World(homes, capacity, depth, limit * PAGE), 2)


def land(w: Watch, *blocks: BlockId) -> None:
    """The reads of ``blocks`` are done."""
    for block in blocks:
        w.complete(next(n for n, read in w.in_flight.items() if block in [part.block for part in read.parts]))


def test_each_drive_has_its_own_reads_in_flight() -> None:
    w = watch(*((x, 1, n % 2) for n, x in enumerate(X)), experts=8, depth=2)
    assert reads(w.acquire(w.streams[1], (*X[0:8:2], *X[1:8:2]))) == [(X[0],), (X[2],), (X[1],), (X[3],)]
    land(w, X[1])
    assert reads(w.log) == [(X[5],)]
    w.run_out()


def test_neighbours_on_a_drive_join_though_others_are_between() -> None:
    w = watch(*((x, 1, n % 2) for n, x in enumerate(X)), experts=8, limit=4)
    assert reads(w.acquire(w.streams[1], tuple(X))) == [tuple(X[0::2]), tuple(X[1::2])]
    w.run_out()
    assert w.planner.counters.drive_bytes == [4 * PAGE, 4 * PAGE]


def test_a_demand_that_only_waits_for_its_drive_is_let_wait() -> None:
    """The other drive idles, and nothing is being read into the region: it looks as if there were no room."""
    w = watch((D[0], 1, 1), (X[0], 1, 1), (X[1], 1, 0), stream=1, experts=1)
    one, two = w.streams[1], w.streams[2]
    w.acquire(two, (D[0],))
    assert w.acquire(one, (X[0],)) == []
    land(w, D[0])
    assert reads(w.log) == [(X[0],)]
    w.run_out()
    assert not one.failed


def test_prefetch_goes_on_while_a_demand_waits_for_another_drive() -> None:
    w = watch((D[0], 1, 0), (D[1], 1, 0), (X[0], 1, 1), (X[1], 1, 1), stream=2, experts=2)
    w.acquire(w.streams[1], (X[0], X[1]))
    assert w.queue == [X[1]]
    land(w, D[0])
    assert reads(w.log) == [(D[1],)]
    w.run_out()


def test_prefetch_past_a_busy_drive_leaves_room_for_what_is_needed_sooner() -> None:
    """d0 and d1 are on the slow drive. While it reads d0, d2 fits beside both, d3 would take the room of d1."""
    w = watch((D[0], 1, 1), (D[1], 2, 1), (D[2], 1, 0), (D[3], 1, 0), stream=4)
    w.begin(w.streams[1])
    assert reads(w.log) == [(D[0],), (D[2],)]
    land(w, D[2])
    assert reads(w.log) == []
    land(w, D[0])
    assert reads(w.log) == [(D[1],)]


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_a_cycle_over_uneven_drives_reads_nothing_in_vain(data: st.DataObject) -> None:
    """Blocks of one size, whichever drive they are on and in whatever order reads land: one read for each use."""
    count = data.draw(st.integers(2, 12))
    drives = data.draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    room, depth = data.draw(st.integers(1, count)), data.draw(st.integers(1, 3))
    w = watch(*((D[n], 1, drive) for n, drive in enumerate(drives)), stream=room, depth=depth)
    stream, tokens = w.streams[1], 4
    brought: Counter[BlockId] = Counter()
    real = w.check_read

    def check_read(read: Read) -> None:
        real(read)
        brought.update(part.block for part in read.parts)

    w.check_read = check_read  # type: ignore[method-assign]
    for _ in range(tokens):
        w.begin(stream)
        for block in D[:count]:
            w.acquire(stream, (block,))
            while stream.ticket is not None or (w.in_flight and data.draw(st.booleans())):
                w.complete(data.draw(st.sampled_from(sorted(w.in_flight))))
            w.release(stream, block)
        w.end(stream)
    assert all(brought[block] <= tokens + 1 for block in D[:count]), brought
    w.run_out()
