"""The contract of asynchronous reads, for every backend: right bytes, right errors, one answer each."""

import ctypes
import errno
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from penstock.kernels.io import directio
from penstock.kernels.io.directio import DirectFile, Segment, ShortRead
from penstock.kernels.io.reading import QueuedReader, Reader, Threads
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE
from tests.support.backends import Backend
from tests.support.reads import SOON, Outcome, joined, segments_of


def test_scatters_neighbours_into_places_apart(reader: Reader, file: DirectFile, content: bytes) -> None:
    arena, outcome = Arena(64 * PAGE), Outcome()
    arena.view(0, arena.length)[:] = b"\xa5" * arena.length
    segments = segments_of(arena, 5 * PAGE, [1, 7, 2, 16])
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert outcome.on_reader_thread
    assert joined(segments) == content[5 * PAGE : 31 * PAGE]
    assert arena.view(PAGE, PAGE) == b"\xa5" * PAGE, "wrote between the segments"


def test_more_segments_than_one_call_takes(reader: Reader, tmp_path: Path) -> None:
    pages = 2 * directio.IOV_MAX + 3
    content = random.Random(1).randbytes(pages * PAGE)
    (tmp_path / "many").write_bytes(content)
    segments, outcome = segments_of(Arena(pages * PAGE), 0, [1] * pages, gap=0), Outcome()
    with DirectFile(tmp_path / "many") as file:
        reader.submit(file, segments, outcome)
        assert outcome.get() is None
    assert joined(segments) == content


@pytest.mark.parametrize("name", ["MOST_AT_ONCE", "BUFFERED_STEP"])
def test_large_reads_go_in_pieces(
    reader: Reader, file: DirectFile, monkeypatch: pytest.MonkeyPatch, content: bytes, name: str
) -> None:
    monkeypatch.setattr(directio, name, 3 * PAGE)
    segments, outcome = segments_of(Arena(64 * PAGE), 0, [2, 30]), Outcome()
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert joined(segments) == content[: 32 * PAGE]


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, PAGE + 512, 5 * PAGE - 1])
def test_goes_on_after_short_reads(
    backend: Backend, reader: Reader, file: DirectFile, monkeypatch: pytest.MonkeyPatch, content: bytes, most: int
) -> None:
    lengths: list[int] = []

    def short(got: int) -> int:
        lengths.append(got)
        return min(most, got)

    backend.fault(monkeypatch, short)
    segments, outcome = segments_of(Arena(64 * PAGE), 3 * PAGE, [1, 4, 2, 8]), Outcome()
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert joined(segments) == content[3 * PAGE : 18 * PAGE]
    # What was not delivered was asked for again.
    step = most // PAGE * PAGE if file.direct else most
    assert lengths == list(range(15 * PAGE, 0, -step))


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_an_interrupted_read_is_tried_again(
    backend: Backend, reader: Reader, file: DirectFile, monkeypatch: pytest.MonkeyPatch, content: bytes, number: int
) -> None:
    if isinstance(reader, Threads):
        pytest.skip("Python itself tries again after a signal, and preadv of a file knows no EAGAIN")
    answers = iter([number, number, 0])

    def interrupt(got: int) -> int:
        if answer := next(answers):
            raise OSError(answer, os.strerror(answer))
        return got

    backend.fault(monkeypatch, interrupt)
    segments, outcome = segments_of(Arena(4 * PAGE), 0, [2]), Outcome()
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert joined(segments) == content[: 2 * PAGE]


@pytest.mark.parametrize("length", [10 * PAGE, 10 * PAGE + 100, 8 * PAGE, 0])
@pytest.mark.parametrize("direct", [None, False])
def test_a_file_that_ends_early_is_named(reader: Reader, tmp_path: Path, length: int, direct: bool | None) -> None:
    path, outcome = tmp_path / "short", Outcome()
    path.write_bytes(bytes(length))
    with DirectFile(path, direct=direct) as file:
        reader.submit(file, segments_of(Arena(16 * PAGE), 8 * PAGE, [1, 3]), outcome)
        error = outcome.get()
    assert isinstance(error, ShortRead)
    assert (error.path, error.offset, error.wanted) == (path, 8 * PAGE, 4 * PAGE)
    assert error.got == max(0, length - 8 * PAGE)


def test_an_error_of_the_drive_is_passed_on_and_the_next_read_works(
    backend: Backend, reader: Reader, file: DirectFile, monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    def fail(got: int) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    segments = segments_of(Arena(PAGE), 0, [1])
    with monkeypatch.context() as patch:
        backend.fault(patch, fail)
        reader.submit(file, segments, outcome := Outcome())
        error = outcome.get()
    assert isinstance(error, OSError)
    assert error.errno == errno.EIO
    reader.submit(file, segments, outcome := Outcome())
    assert outcome.get() is None
    assert joined(segments) == content[:PAGE]


def test_a_real_error_of_the_kernel(reader: Reader) -> None:
    """Memory that is not mapped reads as EIO through /proc/self/mem; before a hole, a read really is short."""
    region = mmap.mmap(-1, 4 * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(region))
    region[:] = bytes(range(256)) * (4 * PAGE // 256)
    assert ctypes.CDLL(None).munmap(ctypes.c_void_p(start + 2 * PAGE), ctypes.c_size_t(2 * PAGE)) == 0
    try:
        with DirectFile("/proc/self/mem", direct=False) as file:
            segments = segments_of(Arena(4 * PAGE), start, [4])
            reader.submit(file, segments, outcome := Outcome())
            error = outcome.get()
            assert isinstance(error, OSError)
            assert error.errno == errno.EIO
            assert joined(segments)[: 2 * PAGE] == region[: 2 * PAGE]
            reader.submit(file, segments_of(Arena(2 * PAGE), start, [2]), outcome := Outcome())
            assert outcome.get() is None
    finally:
        ctypes.CDLL(None).mmap.restype = ctypes.c_void_p
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x10  # MAP_FIXED: the object unmaps all of it one day
        ctypes.CDLL(None).mmap(
            ctypes.c_void_p(start + 2 * PAGE), ctypes.c_size_t(2 * PAGE), 3, flags, -1, ctypes.c_long(0)
        )


def test_refuses_what_is_not_aligned_or_adjacent(reader: Reader, file: DirectFile) -> None:
    arena, outcome = Arena(4 * PAGE), Outcome()
    for segments in (
        [Segment(100, arena.view(0, PAGE))],
        [Segment(0, arena.view(0, 100))],
        [Segment(0, arena.view(0, PAGE)), Segment(2 * PAGE, arena.view(PAGE, PAGE))],
    ):
        with pytest.raises(ValueError, match=r"multiples|not adjacent"):
            reader.submit(file, segments, outcome)
    assert not outcome


def test_says_why_the_kernel_refused_a_buffer(
    backend: Backend, reader: Reader, file: DirectFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(got: int) -> int:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    backend.fault(monkeypatch, refuse)
    arena = Arena(2 * PAGE)
    reader.submit(file, [Segment(0, arena.view(1, PAGE))], outcome := Outcome())
    assert "in memory" in str(outcome.get())
    reader.submit(file, [Segment(0, arena.view(0, PAGE))], outcome := Outcome())
    error = outcome.get()
    assert isinstance(error, OSError)
    assert error.errno == errno.EINVAL


def test_nothing_asked_is_answered(reader: Reader, file: DirectFile) -> None:
    for segments in ([], [Segment(0, memoryview(bytearray()))]):
        reader.submit(file, segments, outcome := Outcome())
        assert outcome.get() is None
        assert outcome.on_reader_thread


@pytest.mark.parametrize("depth", [1, 3, 40])
def test_many_in_flight_from_many_threads(backend: Backend, file: DirectFile, content: bytes, depth: int) -> None:
    reader, problems = backend.make(depth), []

    def work(worker: int) -> None:
        chance, arena = random.Random(worker), Arena(20 * 8 * PAGE, huge_pages=False)
        reads = []
        for number in range(20):
            pages, outcome = chance.randint(1, 8), Outcome()
            offset = chance.randint(0, len(content) // PAGE - pages) * PAGE
            segments = [Segment(offset, arena.view(number * 8 * PAGE, pages * PAGE))]
            reader.submit(file, segments, outcome)
            reads.append((offset, segments, outcome))
        for offset, segments, outcome in reads:
            if outcome.get() is not None or joined(segments) != content[offset : offset + len(joined(segments))]:
                problems.append(offset)

    workers = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(SOON)
        assert not worker.is_alive()
    assert problems == []
    reader.close()


def test_then_may_submit(reader: Reader, file: DirectFile, content: bytes) -> None:
    arena, last, left = Arena(PAGE), Outcome(), 50

    def then(problem: Exception | None) -> None:
        nonlocal left
        left -= 1
        segment = Segment(left * PAGE, arena.view(0, PAGE))
        reader.submit(file, [segment], then if left else last)

    reader.submit(file, [Segment(0, arena.view(0, PAGE))], then)
    assert last.get() is None
    assert arena.view(0, PAGE) == content[:PAGE]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_failing_then_harms_nobody_else(reader: Reader, file: DirectFile) -> None:
    def then(problem: Exception | None) -> None:
        raise RuntimeError("a bug of the caller")

    arena = Arena(PAGE)
    for _ in range(8):
        reader.submit(file, [Segment(0, arena.view(0, PAGE))], then)
    reader.submit(file, [Segment(0, arena.view(0, PAGE))], outcome := Outcome())
    assert outcome.get() is None


def test_leaves_nothing_in_the_page_cache(
    reader: Reader, file: DirectFile, data_file: Path, cached_bytes: Callable[[Path], int]
) -> None:
    reader.submit(file, segments_of(Arena(file.length), 0, [file.length // PAGE]), outcome := Outcome())
    assert outcome.get() is None
    assert cached_bytes(data_file) == 0


class _Queue(QueuedReader):
    """Only the queue: reads begin when the test says so."""

    def _wake(self) -> None:
        pass

    def begin(self) -> int | None:
        """The pages of the read that begins next, if one may."""
        taken = self._take()
        return None if taken is None else taken[0].wanted // PAGE


def test_no_read_begins_beside_enough_bytes(file: DirectFile) -> None:
    """Large reads go one after the other, small ones pass them as far as they fit; every drive counts for itself."""
    arena, queue = Arena(16 * PAGE), _Queue(4 * PAGE)
    with DirectFile(file.path, direct=False) as elsewhere:
        elsewhere.drive = file.drive + 1
        for source, pages in ((file, 6), (file, 3), (file, 3), (file, 1), (elsewhere, 2)):
            queue.submit(source, segments_of(arena, 0, [pages]), Outcome())
        large, _ = queue._waiting[0]
        assert [queue.begin(), queue.begin(), queue.begin()] == [6, 2, None]
        queue._ended(large)
        small, _ = queue._waiting[0]
        assert [queue.begin(), queue.begin(), queue.begin()] == [3, 1, None]
        queue._ended(small)
        assert [queue.begin(), queue.begin()] == [3, None]
