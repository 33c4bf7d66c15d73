"""Appends to data files: one half of the buffer is written while the other is filled, and nothing is lost by that."""

import errno
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kernels.io.directwrite import DirectWriter
from penstock.kernels.memory.arena import Arena
from penstock.tiering.errors import BundleError, FlashFull
from penstock.tiering.store.bundle.drive_writer import DriveWriter
from penstock.tiering.units import PAGE

DEADLINE = 60
"""Seconds after which a test gives up."""


@pytest.fixture(params=[1, 2, 3, 8], ids=lambda pages: f"{pages} pages")
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[DriveWriter]:
    arena = Arena(request.param * PAGE, huge_pages=False)
    made = DriveWriter(tmp_path, arena.view(0, request.param * PAGE), direct=None)
    yield made
    made.close()


def content(pages: int) -> bytes:
    return b"".join(bytes([number % 251]) * PAGE for number in range(pages))


def test_all_bytes_are_in_their_order(writer: DriveWriter, tmp_path: Path) -> None:
    for name, step in (("a.bin", 1000), ("b.bin", 5 * PAGE)):
        writer.open(name)
        for at in range(0, 20 * PAGE, step):
            writer.put(memoryview(content(20))[at : at + step])
        assert writer.position == 20 * PAGE
        writer.sync()
        assert (tmp_path / name).read_bytes() == content(20)
    writer.open("a.bin")
    assert writer.position == 20 * PAGE


def write_slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have writes wait for the second of two events. They set the first one."""
    begun, may = threading.Event(), threading.Event()
    write = DirectWriter.write

    def slowly(self: DirectWriter, buffer: memoryview) -> None:
        begun.set()
        assert may.wait(DEADLINE)
        write(self, buffer)

    monkeypatch.setattr(DirectWriter, "write", slowly)
    return begun, may


def made(tmp_path: Path, pages: int = 4) -> DriveWriter:
    found = DriveWriter(tmp_path, Arena(pages * PAGE, huge_pages=False).view(0, pages * PAGE), direct=None)
    found.open("a.bin")
    return found


def test_a_half_is_filled_while_the_other_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, may = write_slowly(monkeypatch)
    writer = made(tmp_path)
    writer.put(memoryview(content(3)))
    assert begun.wait(DEADLINE)
    assert (writer.position, (tmp_path / "a.bin").stat().st_size) == (3 * PAGE, 0)
    may.set()
    writer.sync()
    assert (tmp_path / "a.bin").read_bytes() == content(3)
    writer.close()


def test_who_closes_waits_for_what_is_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would go to whatever file has the same descriptor next."""
    begun, may = write_slowly(monkeypatch)
    writer = made(tmp_path)
    writer.put(memoryview(content(2)))
    assert begun.wait(DEADLINE)
    closing = threading.Thread(target=writer.close)
    closing.start()
    may.set()
    closing.join(DEADLINE)
    assert (tmp_path / "a.bin").read_bytes() == content(2)


@pytest.mark.parametrize(("number", "raised"), [(errno.ENOSPC, FlashFull), (errno.EIO, BundleError)])
def test_an_error_comes_at_the_next_sync_at_the_latest(
    number: int, raised: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, "it fails")

    monkeypatch.setattr(DirectWriter, "write", fail)
    writer = made(tmp_path)
    writer.put(memoryview(content(2)))
    with pytest.raises(raised):
        writer.sync()
    writer.close()
    writer.close()
