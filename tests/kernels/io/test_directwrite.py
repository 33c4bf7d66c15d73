"""Appending data files: right bytes, bounded page cache, a full drive named, a file that can be gone on with."""

import errno
import os
import random
from pathlib import Path

import pytest

from penstock.kernels.io import directwrite
from penstock.kernels.io.directwrite import DirectWriter
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE

real_pwrite, real_open = os.pwrite, os.open


def pages(count: int, seed: int = 0) -> memoryview:
    view = Arena(count * PAGE).view(0, count * PAGE)
    view[:] = random.Random(seed).randbytes(count * PAGE)
    return view


@pytest.fixture(params=[None, False], ids=["direct", "buffered"])
def writer(request, tmp_path):
    with DirectWriter(tmp_path / "data", direct=request.param) as opened:
        yield opened


def test_appends_and_goes_on_in_an_existing_file(writer):
    first, second, third = pages(3, 1), pages(1, 2), pages(5, 3)
    writer.write(first)
    writer.write(second)
    assert writer.position == 4 * PAGE
    writer.sync()
    writer.close()
    with DirectWriter(writer.path, direct=writer.direct or None) as again:
        assert again.position == 4 * PAGE
        again.write(third)
    assert writer.path.read_bytes() == b"".join((first, second, third))


def test_truncate_drops_the_tail(writer):
    writer.write(pages(4, 1))
    writer.truncate(PAGE)
    writer.write(pages(1, 2))
    assert writer.position == 2 * PAGE
    writer.sync()
    assert writer.path.read_bytes() == bytes(pages(4, 1)[:PAGE]) + bytes(pages(1, 2))
    for length in (3 * PAGE, -PAGE, 100):
        with pytest.raises(ValueError, match="cannot cut"):
            writer.truncate(length)


def test_a_torn_tail_must_be_cut_first(tmp_path):
    path = tmp_path / "torn"
    path.write_bytes(bytes(PAGE + 7))
    with DirectWriter(path) as writer:
        assert writer.position == PAGE + 7
        with pytest.raises(ValueError, match="multiples"):
            writer.write(pages(1))
        writer.truncate(PAGE)
        writer.write(pages(1))
    assert path.read_bytes() == bytes(PAGE) + bytes(pages(1))


def test_refuses_what_is_not_aligned(writer):
    with pytest.raises(ValueError, match="multiples"):
        writer.write(pages(1)[:100])
    with pytest.raises(ValueError, match="in memory"):
        writer.write(pages(2)[1 : PAGE + 1])
    assert writer.position == 0


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, PAGE + 512])
def test_goes_on_after_short_writes(writer, monkeypatch, most):
    monkeypatch.setattr(os, "pwrite", lambda descriptor, data, offset: real_pwrite(descriptor, data[:most], offset))
    if writer.direct and most % PAGE:
        # The drive would refuse to write part of a page; it reports to have written it.
        monkeypatch.setattr(
            os, "pwrite", lambda descriptor, data, offset: min(most, real_pwrite(descriptor, data, offset))
        )
    writer.write(pages(7))
    writer.sync()
    assert writer.path.read_bytes() == bytes(pages(7))


def test_a_write_stuck_inside_a_page_is_a_full_drive(tmp_path, monkeypatch):
    with DirectWriter(tmp_path / "data") as writer:
        writer.write(pages(1))
        if not writer.direct:
            pytest.skip("the folder for temporary files has no direct I/O")
        monkeypatch.setattr(os, "pwrite", lambda *_: 512)
        with pytest.raises(OSError) as caught:
            writer.write(pages(1))
    assert caught.value.errno == errno.ENOSPC


@pytest.mark.parametrize("direct", [None, False])
def test_what_is_no_file_is_refused_at_once(tmp_path, direct):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder", "/dev/full"):
        with pytest.raises(OSError):
            DirectWriter(tmp_path / name, direct=direct)


@pytest.mark.parametrize("direct", [None, False])
def test_a_link_is_not_followed(tmp_path, direct):
    (tmp_path / "another").write_bytes(b"precious")
    (tmp_path / "data").symlink_to(tmp_path / "another")
    with pytest.raises(OSError, match="it is a link"):
        DirectWriter(tmp_path / "data", direct=direct)
    assert (tmp_path / "another").read_bytes() == b"precious"


def test_after_a_failure_the_next_write_overwrites(writer, monkeypatch):
    writer.write(pages(1, 1))
    monkeypatch.setattr(directwrite, "BUFFERED_STEP", PAGE)
    calls = []

    def fill_up(descriptor, data, offset):
        calls.append(offset)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_pwrite(descriptor, data[:PAGE], offset)

    monkeypatch.setattr(os, "pwrite", fill_up)
    with pytest.raises(OSError) as caught:
        writer.write(pages(4, 2))
    assert caught.value.errno == errno.ENOSPC
    assert writer.position == PAGE
    monkeypatch.setattr(os, "pwrite", real_pwrite)
    writer.sync()
    writer.write(pages(1, 3))
    writer.truncate(writer.position)
    assert writer.path.read_bytes() == bytes(pages(1, 1)) + bytes(pages(1, 3))


def test_dirty_pages_stay_few(cached_bytes, tmp_path, monkeypatch):
    monkeypatch.setattr(directwrite, "BUFFERED_STEP", 1 << 20)
    writer = DirectWriter(tmp_path / "data", direct=False)
    block, cached, flushes = pages(96), [], []
    real_fdatasync = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda descriptor: flushes.append(real_fdatasync(descriptor)))
    for _ in range(12):
        writer.write(block)
        cached.append(cached_bytes(writer.path))
    assert max(cached) <= 1 << 20
    assert max(cached) > 0, "the test cannot see the page cache"
    assert len(flushes) == 4, "a flush belongs after every full step, and nowhere else"
    writer.sync()
    assert cached_bytes(writer.path) == 0
    assert writer.path.stat().st_size == 12 * 96 * PAGE


def test_direct_writes_pass_the_page_cache_by(cached_bytes, tmp_path):
    with DirectWriter(tmp_path / "data") as writer:
        writer.write(pages(64))
        if not writer.direct:
            pytest.skip("the folder for temporary files has no direct I/O")
        assert cached_bytes(writer.path) == 0


@pytest.mark.parametrize("port", ["open", "pwrite"])
def test_falls_back_where_direct_writes_are_refused(tmp_path, monkeypatch, port):
    direct = set()

    def opened(path, flags, *rest):
        if flags & os.O_DIRECT and port == "open":
            raise OSError(errno.EINVAL, "no direct I/O")
        descriptor = real_open(path, flags & ~os.O_DIRECT, *rest)
        direct.discard(descriptor)
        if flags & os.O_DIRECT:
            direct.add(descriptor)
        return descriptor

    def written(descriptor, data, offset):
        if descriptor in direct:
            raise OSError(errno.EINVAL, "no direct I/O")
        return real_pwrite(descriptor, data, offset)

    descriptors = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, "open", opened)
    monkeypatch.setattr(os, "pwrite", written)
    with DirectWriter(tmp_path / "data") as writer:
        writer.write(pages(3))
        assert not writer.direct
        assert len(os.listdir("/proc/self/fd")) == descriptors + 1
        writer.write(pages(1))
    assert (tmp_path / "data").read_bytes() == bytes(pages(3)) + bytes(pages(1))
    with pytest.raises(OSError, match="no direct I/O"), DirectWriter(tmp_path / "other", direct=True) as writer:
        writer.write(pages(1))


def test_sync_reaches_the_drive(writer, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fdatasync", synced.append)
    writer.write(pages(1))
    assert not synced
    writer.sync()
    assert synced == [writer._descriptor]


def test_close_is_idempotent_and_later_use_is_refused(writer):
    descriptors = len(os.listdir("/proc/self/fd"))
    writer.close()
    writer.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors - 1
    for use in (lambda: writer.write(pages(1)), writer.sync, lambda: writer.truncate(0)):
        with pytest.raises(ValueError, match="is closed"):
            use()


def test_no_such_folder_is_an_oserror(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        DirectWriter(tmp_path / "absent" / "data")
