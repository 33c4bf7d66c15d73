"""The ends of reads and readers, for every backend: what is asked for lands or is refused, nothing is kept, no hang."""

import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from penstock.kernels.io import reading
from penstock.kernels.io.directio import DirectFile, Segment
from penstock.kernels.io.reading import Reader, ReaderClosed
from penstock.kernels.memory.arena import Arena
from penstock.kernels.memory.page import PAGE
from penstock.kernels.waiting import no_waiting
from tests.support.backends import Backend
from tests.support.reads import SOON, Outcome, joined, segments_of


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
    threads, descriptors = {*threading.enumerate()}, len(os.listdir("/proc/self/fd"))
    reader = backend.make(2)
    reader.submit(file, segments_of(Arena(PAGE), 0, [1]), outcome := Outcome())
    assert outcome.get() is None
    for _ in range(3):
        reader.close()
    with pytest.raises(ReaderClosed):
        reader.submit(file, segments_of(Arena(PAGE), 0, [1]), outcome)
    assert {*threading.enumerate()} <= threads
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

        monkeypatch.setattr(reading, "no_waiting", closing())
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
