"""The contract of asynchronous reads, for every backend: right bytes, right errors, one answer each, no hang."""

import contextlib
import ctypes
import errno
import gc
import mmap
import os
import queue
import random
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from penstock.kernels import directio, reading, uring
from penstock.kernels.arena import Arena
from penstock.kernels.backends import open_reader, usable
from penstock.kernels.directio import PAGE, DirectFile, Segment, ShortRead
from penstock.kernels.reading import BackendUnavailable, Reader, ReaderClosed, Threads, may_wait, no_waiting
from penstock.kernels.uring import Uring

from ..backends import BACKENDS, Backend

SOON = 20.0
"""Seconds after which a test gives up on what should take no time."""


class Outcome:
    """A ``then`` that can be waited for."""

    def __init__(self) -> None:
        self._answers: queue.Queue[Exception | None] = queue.Queue()
        self.on_reader_thread = False

    def __call__(self, problem: Exception | None) -> None:
        self.on_reader_thread = not may_wait()
        self._answers.put(problem)

    def __bool__(self) -> bool:
        return not self._answers.empty()

    def get(self) -> Exception | None:
        answer = self._answers.get(timeout=SOON)
        assert self._answers.empty(), "answered twice"
        return answer


def segments_of(arena: Arena, offset: int, pages: Sequence[int], gap: int = 1) -> list[Segment]:
    """Segments of so many pages each, adjacent in the file from ``offset`` on, ``gap`` pages apart in memory."""
    segments, place = [], 0
    for count in pages:
        segments.append(Segment(offset, arena.view(place, count * PAGE)))
        offset += count * PAGE
        place += (count + gap) * PAGE
    return segments


def joined(segments: Sequence[Segment]) -> bytes:
    return b"".join(segment.buffer for segment in segments)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return BACKENDS[request.param]()


@pytest.fixture
def reader(backend: Backend) -> Iterator[Reader]:
    reader = backend.make(4)
    yield reader
    reader.close()


@pytest.fixture(params=[None, False], ids=["direct", "buffered"])
def file(request: pytest.FixtureRequest, data_file: Path) -> Iterator[DirectFile]:
    with DirectFile(data_file, direct=request.param) as opened:
        if request.param is None and not opened.direct:
            pytest.skip("the folder for temporary files has no direct I/O")
        yield opened


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


def test_close_lets_reads_land(backend: Backend, file: DirectFile, content: bytes) -> None:
    reader, gate, started = backend.make(2), threading.Event(), threading.Semaphore(0)
    arena, outcomes = Arena(16 * PAGE), [Outcome() for _ in range(16)]

    def hold(problem: Exception | None) -> None:
        started.release()
        assert gate.wait(SOON)

    reader.submit(file, [], hold)
    assert started.acquire(timeout=SOON)
    for n, outcome in enumerate(outcomes):
        reader.submit(file, [Segment(n * PAGE, arena.view(n * PAGE, PAGE))], outcome)
    closing = threading.Thread(target=reader.close, daemon=True)
    closing.start()
    file.close()
    gate.set()
    closing.join(SOON)
    assert not closing.is_alive()
    assert [outcome.get() for outcome in outcomes] == [None] * 16
    assert arena.view(0, arena.length) == content[: 16 * PAGE]


def test_use_after_close(backend: Backend, file: DirectFile) -> None:
    threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
    reader = backend.make(2)
    reader.submit(file, segments_of(Arena(PAGE), 0, [1]), outcome := Outcome())
    assert outcome.get() is None
    for _ in range(3):
        reader.close()
    with pytest.raises(ReaderClosed):
        reader.submit(file, segments_of(Arena(PAGE), 0, [1]), outcome)
    assert threading.active_count() == threads
    assert len(os.listdir("/proc/self/fd")) == descriptors
    file.close()
    with pytest.raises(OSError, match="Bad file"):  # the refused read does not keep the file open
        os.fstat(file.descriptor)


def test_a_closed_file_is_refused(reader: Reader, file: DirectFile) -> None:
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        reader.submit(file, segments_of(Arena(PAGE), 0, [1]), Outcome())


def test_close_from_its_own_thread(backend: Backend, file: DirectFile) -> None:
    reader, closed = backend.make(1), threading.Event()

    def then(problem: Exception | None) -> None:
        reader.close()
        closed.set()

    reader.submit(file, [], then)
    assert closed.wait(SOON)
    reader.close()


def test_a_read_outlives_the_thread_that_submitted_it(reader: Reader, file: DirectFile, content: bytes) -> None:
    reads = []
    for number in range(32):
        segments, outcome = segments_of(Arena(8 * PAGE), number * 8 * PAGE, [8]), Outcome()
        submitter = threading.Thread(target=reader.submit, args=(file, segments, outcome), daemon=True)
        submitter.start()
        submitter.join(SOON)
        reads.append((number * 8 * PAGE, segments, outcome))
    for offset, segments, outcome in reads:
        assert outcome.get() is None
        assert joined(segments) == content[offset : offset + 8 * PAGE]


def test_close_in_the_middle_of_submit(
    backend: Backend, file: DirectFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the garbage collector does it: what is handed in lands or is refused, and nobody waits for himself."""
    for moment in ("before", "after"):
        reader, real = backend.make(1), no_waiting

        @contextlib.contextmanager
        def closing(reader: Reader = reader, moment: str = moment, real: Any = real) -> Iterator[None]:
            with real, reader._lock:  # type: ignore[attr-defined]
                if moment == "before":
                    reader.close()
                yield
                if moment == "after":
                    reader.close()

        for module in (reading, uring):
            monkeypatch.setattr(module, "no_waiting", closing())
        segments, outcome = segments_of(Arena(PAGE), 0, [1]), Outcome()
        if moment == "before":
            with pytest.raises(ReaderClosed):
                reader.submit(file, segments, outcome)
        else:
            reader.submit(file, segments, outcome)
            assert outcome.get() is None
            assert joined(segments) == content[:PAGE]
        monkeypatch.undo()
        reader.close()


def test_an_idle_reader_keeps_nothing(reader: Reader, data_file: Path) -> None:
    arena, outcome, gone = Arena(PAGE), Outcome(), threading.Event()
    with DirectFile(data_file) as file:
        reader.submit(file, [Segment(0, arena.view(0, PAGE))], outcome)
        assert outcome.get() is None
    watch = weakref.ref(arena._map, lambda _: gone.set())
    arena.close()
    gc.collect()
    assert gone.wait(SOON)
    assert watch() is None


def test_no_buffer_is_kept_after_a_read(reader: Reader, file: DirectFile) -> None:
    """And none is released that somebody still has: a view counts its buffers, and cannot go while one is taken."""
    view = Arena(2 * PAGE).view(0, 2 * PAGE)
    own = memoryview(view)
    count = sys.getrefcount(view)
    for _ in range(20):
        reader.submit(file, [Segment(0, view[:PAGE]), Segment(PAGE, view[PAGE:])], outcome := Outcome())
        assert outcome.get() is None
        reader.submit(file, [Segment(0, view)], outcome := Outcome())
        assert outcome.get() is None
    reader.close()
    gc.collect()
    assert sys.getrefcount(view) == count
    own.release()
    view.release()


def test_the_memory_lives_until_the_read_has_landed(reader: Reader, file: DirectFile) -> None:
    outcomes = [Outcome() for _ in range(50)]
    for outcome in outcomes:
        reader.submit(file, segments_of(Arena(16 * PAGE), 0, [3, 3], gap=0), outcome)
        gc.collect(0)
    assert [outcome.get() for outcome in outcomes] == [None] * 50


def test_leaves_nothing_in_the_page_cache(
    reader: Reader, file: DirectFile, data_file: Path, cached_bytes: Callable[[Path], int]
) -> None:
    reader.submit(file, segments_of(Arena(file.length), 0, [file.length // PAGE]), outcome := Outcome())
    assert outcome.get() is None
    assert cached_bytes(data_file) == 0


def test_a_kernel_without_room_is_asked_again(
    file: DirectFile, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = BACKENDS["io_uring"]().make(2)
    api = uring._liburing()
    real, refusals = api.io_uring_submit, iter([errno.EBUSY, errno.EINTR, errno.EAGAIN, 0, -1])

    def submit(ring: object) -> int:
        if (number := next(refusals, -1)) > 0:
            raise OSError(number, os.strerror(number))
        return 0 if number == 0 else int(real(ring))

    monkeypatch.setattr(api, "io_uring_submit", submit)
    segments, outcome = segments_of(Arena(4 * PAGE), 0, [2]), Outcome()
    reader.submit(file, segments, outcome)
    assert outcome.get() is None
    assert joined(segments) == content[: 2 * PAGE]
    reader.close()


# --- where io_uring cannot be used ----------------------------------------------------------------------------------

SYSCTL = Path("/proc/sys/kernel/io_uring_disabled")

FORBID = """
import ctypes, struct, sys
number, answer = {number}, {answer}
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
program = op(0x20, 0, 0, 0) + op(0x15, 0, 1, number) + op(0x06, 0, 0, 0x00050000 | answer) + op(0x06, 0, 0, 0x7FFF0000)
buffer = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
if libc.prctl(22, 2, ctypes.byref(Filter(4, ctypes.addressof(buffer))), 0, 0):
    print("no seccomp")
    sys.exit()
from penstock.kernels import uring
from penstock.kernels.reading import BackendUnavailable
try:
    uring.probe()
    print("works")
except BackendUnavailable as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("number", "answer", "says"),
    [
        (425, errno.EPERM, "forbids"),
        (425, errno.ENOSYS, "none"),
        (425, errno.ENOMEM, "locked"),
        (427, errno.EACCES, ""),
    ],
    ids=["EPERM", "ENOSYS", "ENOMEM", "register"],
)
def test_a_seccomp_filter_is_named(number: int, answer: int, says: str) -> None:
    pytest.importorskip("liburing")
    script = FORBID.format(number=number, answer=int(answer))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    if done.stdout.strip() == "no seccomp":
        pytest.skip("no seccomp filters here")
    assert done.stdout.startswith("io_uring cannot be used here")
    assert says in done.stdout


def test_the_kernels_own_switch_is_named() -> None:
    pytest.importorskip("liburing")
    if not os.access(SYSCTL, os.W_OK):
        pytest.skip(f"{SYSCTL} cannot be written")
    before = SYSCTL.read_text()
    try:
        try:
            SYSCTL.write_text("2")
        except OSError as error:
            pytest.skip(f"{SYSCTL} cannot be written: {error}")
        with pytest.raises(BackendUnavailable, match="io_uring_disabled"):
            uring.probe()
        with pytest.raises(BackendUnavailable):
            Uring(4)
        assert "io_uring" not in usable()
        with pytest.raises(BackendUnavailable):
            open_reader("io_uring", 2)
    finally:
        SYSCTL.write_text(before)


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "liburing", None)
    with pytest.raises(BackendUnavailable, match=r"penstock\[uring\]"):
        uring.probe()
