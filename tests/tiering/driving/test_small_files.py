"""Small files: on the background loop while it runs, here otherwise, and whole in any case."""

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kernels.waiting import no_waiting
from penstock.tiering.driving.background import BackgroundTask, Hold
from penstock.tiering.driving.small_files import append, on_loop, read_small, write_durably


def loops() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "penstock-background"]


@pytest.fixture
def hold() -> Iterator[Hold]:
    hold = Hold()
    yield hold
    hold.close()
    assert loops() == []


@on_loop
def where() -> threading.Thread:
    return threading.current_thread()


@on_loop
def inside() -> threading.Thread:
    return where()


def test_they_go_through_the_loops_pool_while_it_runs(hold: Hold) -> None:
    assert where() is not threading.current_thread()
    assert where() not in loops()
    assert inside() is not threading.current_thread()


def test_they_are_handled_here_where_no_loop_runs() -> None:
    assert where() is threading.current_thread()
    assert inside() is threading.current_thread()


def test_nobody_waits_for_the_loop_who_must_not(hold: Hold) -> None:
    with no_waiting:
        assert where() is threading.current_thread()
    found: list[threading.Thread] = []

    async def on_the_loop() -> None:
        found.append(where())

    beside = BackgroundTask(on_the_loop)
    while not found and beside._ended.wait(20):
        pass
    beside.close()
    assert found == loops()


def test_one_loop_for_all_who_hold_it(hold: Hold) -> None:
    (loop,) = loops()
    second = Hold()
    assert loops() == [loop]
    second.close()
    second.close()
    assert loops() == [loop], "the first hold is still there"
    assert where() is not threading.current_thread()


def test_a_loop_starts_anew_after_the_last_hold() -> None:
    for _ in range(2):
        hold = Hold()
        assert len(loops()) == 1
        hold.close()
        assert loops() == []


def test_a_child_process_has_no_loop(hold: Hold, tmp_path: Path) -> None:
    child = os.fork()
    if not child:
        try:
            write_durably(tmp_path / "file", "by the child")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert (tmp_path / "file").read_text() == "by the child"


@pytest.mark.parametrize("running", [False, True])
def test_what_is_written_is_read(tmp_path: Path, running: bool) -> None:
    hold = Hold() if running else None
    path = tmp_path / "file"
    write_durably(path, "old", mode=0o600)
    write_durably(path, iter([b"new", b"er"]), mode=0o600, alone=False)
    append(path, b" still")
    assert read_small(path, 11) == b"newer still"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "absent", 1)
    if hold is not None:
        hold.close()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("running", [False, True])
def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, running: bool, alone: bool) -> None:
    def pieces() -> Iterator[bytes]:
        yield b"a beginning"
        raise OSError("the drive is full")

    hold = Hold() if running else None
    path = tmp_path / "file"
    write_durably(path, "old")
    with pytest.raises(OSError, match="full"):
        write_durably(path, pieces(), alone=alone)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    if hold is not None:
        hold.close()


def test_writers_at_the_same_time_leave_a_whole_file(hold: Hold, tmp_path: Path) -> None:
    path, texts = tmp_path / "file", [str(n) * 100_000 for n in range(8)]
    writers = [
        threading.Thread(target=write_durably, args=(path, text), kwargs={"alone": False}, daemon=True)
        for text in texts
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]
    gc.collect()
