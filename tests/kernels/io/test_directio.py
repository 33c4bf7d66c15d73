"""Scatter reads: every byte in its place, whatever the kernel, the drive and the caller do."""

import errno
import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.kernels.io import directio
from penstock.kernels.io.directio import IOV_MAX, DirectFile, Segment, ShortRead
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE
from tests.support.reads import joined, segments_of

real_preadv, real_open = os.preadv, os.open


def test_scatters_neighbours_into_places_apart(file, content):
    arena = Arena(64 * PAGE)
    arena.view(0, arena.length)[:] = b"\xa5" * arena.length
    segments = segments_of(arena, 5 * PAGE, [1, 7, 2, 16])
    file.read(segments)
    assert joined(segments) == content[5 * PAGE : 31 * PAGE]
    assert arena.view(PAGE, PAGE) == b"\xa5" * PAGE, "wrote between the segments"
    assert arena.view(29 * PAGE, 35 * PAGE) == b"\xa5" * 35 * PAGE, "wrote behind the segments"


def test_reads_more_segments_than_one_call_takes(tmp_path):
    pages = 2 * IOV_MAX + 3
    content = random.Random(1).randbytes(pages * PAGE)
    (tmp_path / "many").write_bytes(content)
    segments = segments_of(Arena(pages * PAGE), 0, [1] * pages, gap=0)
    for direct in (None, False):
        with DirectFile(tmp_path / "many", direct=direct) as file:
            file.read(segments)
        assert joined(segments) == content
        for segment in segments:
            segment.buffer[:] = bytes(PAGE)


def test_reads_more_than_passes_through_the_page_cache_at_once(file, monkeypatch, content):
    monkeypatch.setattr(directio, "BUFFERED_STEP", 3 * PAGE)
    segments = segments_of(Arena(64 * PAGE), 0, [2, 30])
    file.read(segments)
    assert joined(segments) == content[: 32 * PAGE]


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, PAGE + 512, 5 * PAGE - 1])
def test_goes_on_after_short_reads(file, monkeypatch, content, most):
    def short(descriptor, buffers, offset):
        left = got = min(most, real_preadv(descriptor, buffers, offset))
        # What was not delivered must not be taken for read.
        for buffer in buffers:
            kept = min(left, len(buffer))
            buffer[kept:] = b"\xee" * (len(buffer) - kept)
            left -= kept
        return got

    monkeypatch.setattr(os, "preadv", short)
    segments = segments_of(Arena(64 * PAGE), 3 * PAGE, [1, 4, 2, 8])
    file.read(segments)
    assert joined(segments) == content[3 * PAGE : 18 * PAGE]


@pytest.mark.parametrize("length", [10 * PAGE, 10 * PAGE + 100, 10 * PAGE - 512, 8 * PAGE, 0])
@pytest.mark.parametrize("direct", [None, False])
def test_a_file_that_ends_early_is_named(tmp_path, length, direct):
    path = tmp_path / "short"
    path.write_bytes(bytes(length))
    with DirectFile(path, direct=direct) as file:
        assert file.length == length
        with pytest.raises(ShortRead, match="ends early") as caught:
            file.read(segments_of(Arena(16 * PAGE), 8 * PAGE, [1, 3]))
    error = caught.value
    assert (error.path, error.offset, error.wanted) == (path, 8 * PAGE, 4 * PAGE)
    assert error.got == max(0, length - 8 * PAGE)
    assert str(path) in str(error)
    assert str(8 * PAGE) in str(error)


def test_reads_to_the_very_end(file, content):
    segments = segments_of(Arena(8 * PAGE), len(content) - 4 * PAGE, [4])
    file.read(segments)
    assert joined(segments) == content[-4 * PAGE :]


def test_a_drive_error_comes_through(file, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "preadv", fail)
    with pytest.raises(OSError) as caught:
        file.read(segments_of(Arena(PAGE), 0, [1]))
    assert caught.value.errno == errno.EIO
    assert not isinstance(caught.value, ShortRead)
    monkeypatch.undo()
    file.read(segments_of(Arena(PAGE), 0, [1]))


def test_many_threads_read_one_file(file, content):
    def read(worker: int) -> None:
        chance, arena = random.Random(worker), Arena(32 * PAGE, huge_pages=False)
        for _ in range(50):
            pages = [chance.randint(1, 6) for _ in range(3)]
            offset = chance.randint(0, len(content) // PAGE - sum(pages)) * PAGE
            segments = segments_of(arena, offset, pages)
            file.read(segments)
            assert joined(segments) == content[offset : offset + sum(pages) * PAGE]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(read, range(8)))


def test_reads_leave_nothing_in_the_page_cache(cached_bytes, data_file, content):
    for direct in (None, False):
        with DirectFile(data_file, direct=direct) as file:
            assert cached_bytes(data_file) == 0
            file.read(segments_of(Arena(len(content) + PAGE), 0, [3, len(content) // PAGE - 3]))
        assert cached_bytes(data_file) == 0
    # One small read after the other: what makes a kernel read ahead.
    with DirectFile(data_file, direct=False) as file:
        for page in range(8):
            file.read(segments_of(Arena(PAGE), page * PAGE, [1]))
            assert cached_bytes(data_file) == 0
    data_file.read_bytes()
    assert cached_bytes(data_file) > 0, "the test cannot see the page cache"


def refuse_open(path, flags, *rest, **named):
    if flags & os.O_DIRECT:
        raise OSError(errno.EINVAL, "no direct I/O")
    return real_open(path, flags, *rest, **named)


def refuse_read(descriptor, buffers, offset):
    if direct_flag(descriptor):
        raise OSError(errno.EINVAL, "no direct I/O")
    return real_preadv(descriptor, buffers, offset)


def direct_flag(descriptor: int) -> bool:
    flags = Path(f"/proc/self/fdinfo/{descriptor}").read_text().partition("flags:")[2].split()[0]
    return bool(int(flags, 8) & os.O_DIRECT)


@pytest.mark.parametrize(("port", "refuse"), [("open", refuse_open), ("preadv", refuse_read)])
def test_falls_back_where_direct_reads_are_refused(monkeypatch, data_file, content, port, refuse):
    monkeypatch.setattr(os, port, refuse)
    descriptors = len(os.listdir("/proc/self/fd"))
    with DirectFile(data_file) as file:
        assert not file.direct
        segments = segments_of(Arena(8 * PAGE), PAGE, [1, 2])
        file.read(segments)
        assert joined(segments) == content[PAGE : 4 * PAGE]
    with pytest.raises(OSError, match="no direct I/O"):
        DirectFile(data_file, direct=True)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_works_on_a_file_system_in_memory(content):
    path = Path(f"/dev/shm/penstock-test-{os.getpid()}")
    if not path.parent.is_dir():
        pytest.skip("there is no /dev/shm")
    try:
        path.write_bytes(content)
        with DirectFile(path) as file:
            # Old kernels refuse direct I/O here; the descriptor says whether the attribute is true.
            assert file.direct == direct_flag(file._descriptor)
            segments = segments_of(Arena(8 * PAGE), PAGE, [1, 2])
            file.read(segments)
        assert joined(segments) == content[PAGE : 4 * PAGE]
    finally:
        path.unlink(missing_ok=True)


def test_direct_is_what_the_descriptor_says(file):
    assert direct_flag(file._descriptor) == file.direct


def test_refuses_what_is_not_aligned_or_adjacent(file):
    arena = Arena(4 * PAGE)
    with pytest.raises(ValueError, match="multiples"):
        file.read([Segment(100, arena.view(0, PAGE))])
    with pytest.raises(ValueError, match="multiples"):
        file.read([Segment(0, arena.view(0, 100))])
    with pytest.raises(ValueError, match="not adjacent"):
        file.read([Segment(0, arena.view(0, PAGE)), Segment(2 * PAGE, arena.view(PAGE, PAGE))])
    with pytest.raises(BufferError):
        file.read([Segment(0, memoryview(bytes(PAGE)))])


def test_says_why_the_kernel_refused_a_buffer(file, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "preadv", refuse)
    arena = Arena(2 * PAGE)
    with pytest.raises(ValueError, match="in memory"):
        file.read([Segment(0, arena.view(1, PAGE))])
    with pytest.raises(OSError) as caught:
        file.read([Segment(0, arena.view(0, PAGE))])
    assert caught.value.errno == errno.EINVAL


def test_nothing_asked_is_nothing_done(file):
    file.read([])
    file.read([Segment(0, memoryview(bytearray()))])


def test_close_is_idempotent_and_later_reads_are_refused(file):
    file.close()
    file.close()
    with pytest.raises(ValueError, match="is closed"):
        file.read(segments_of(Arena(PAGE), 0, [1]))


def test_close_waits_with_the_descriptor_for_reads_under_way(file, monkeypatch, content):
    inside, go_on = threading.Event(), threading.Event()

    def slow(descriptor, buffers, offset):
        inside.set()
        assert go_on.wait(10)
        return real_preadv(descriptor, buffers, offset)

    monkeypatch.setattr(os, "preadv", slow)
    segments = segments_of(Arena(PAGE), 0, [1])
    descriptor = file._descriptor
    with ThreadPoolExecutor(1) as pool:
        read = pool.submit(file.read, segments)
        assert inside.wait(10)
        file.close()
        os.fstat(descriptor)
        go_on.set()
        read.result(10)
    assert joined(segments) == content[:PAGE]
    with pytest.raises(OSError):
        os.fstat(descriptor)


def test_a_forgotten_file_gives_its_descriptor_back(data_file):
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        DirectFile(data_file)
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_an_absent_file_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        DirectFile(tmp_path / "absent")


def test_close_in_the_middle_of_a_beginning(file):
    """As the garbage collector does it: the read goes on with its own descriptor, or is refused."""

    real = file._lock

    class Lock:
        def __enter__(self):
            real.__enter__()
            file._lock = real
            file.close()

        def __exit__(self, *rest):
            return real.__exit__(*rest)

    file._lock = Lock()
    descriptor = file.descriptor
    with pytest.raises(ValueError, match="is closed"):
        file.begin([])
    with pytest.raises(OSError):
        os.fstat(descriptor)


@pytest.mark.parametrize("direct", [None, False])
@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, what, direct):
    place = tmp_path / "data"
    {"pipe": os.mkfifo, "folder": os.mkdir, "device": lambda path: os.symlink("/dev/zero", path)}[what](place)
    with pytest.raises(OSError, match=r"not a regular file|Is a directory"):
        DirectFile(place, direct=direct)
