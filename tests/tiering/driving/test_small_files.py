"""Small files: on the background loop while it runs, here otherwise, and whole in any case."""

import gc
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from penstock.kernels.waiting import no_waiting
from penstock.tiering.driving.background import BackgroundTask, Hold
from penstock.tiering.driving.small_files import append, make_folder, on_loop, read_small, write_durably


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


# --- what lies in the place of a file -------------------------------------------------------------------------------


def put(what: str, path: Path, content: bytes = b"content") -> None:
    """Put ``what`` at ``path``; a link leads to a file with ``content``, or nowhere."""
    match what:
        case "pipe":
            os.mkfifo(path)
        case "folder":
            path.mkdir()
        case "device":
            path.symlink_to("/dev/zero")
        case "link":
            path.with_name("another").write_bytes(content)
            path.symlink_to(path.with_name("another"))
        case "dangling":
            path.symlink_to(path.with_name("nowhere"))


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
@pytest.mark.parametrize("follow", [True, False])
def test_what_is_no_file_is_refused_without_waiting(tmp_path: Path, what: str, follow: bool) -> None:
    put(what, tmp_path / "file")
    with pytest.raises(OSError):
        read_small(tmp_path / "file", 100, follow=follow)
    with pytest.raises(OSError):
        append(tmp_path / "file", b"more")


def test_links_are_followed_where_they_are_the_users(tmp_path: Path) -> None:
    put("link", tmp_path / "file")
    assert read_small(tmp_path / "file", 100) == b"content"
    with pytest.raises(OSError, match="it is a link"):
        read_small(tmp_path / "file", 100, follow=False)


@pytest.mark.parametrize("what", ["link", "dangling"])
def test_nothing_is_written_through_a_link(tmp_path: Path, what: str) -> None:
    put(what, tmp_path / "file")
    with pytest.raises(OSError, match="it is a link"):
        append(tmp_path / "file", b"more")
    write_durably(tmp_path / "file", "ours")
    assert not (tmp_path / "file").is_symlink()
    assert not (tmp_path / "nowhere").exists()
    if what == "link":
        assert (tmp_path / "another").read_bytes() == b"content"


@pytest.mark.parametrize("alone", [True, False])
def test_a_link_under_the_old_temporary_name_overwrites_nothing(tmp_path: Path, alone: bool) -> None:
    put("link", tmp_path / "file.tmp")
    write_durably(tmp_path / "file", "ours", alone=alone)
    assert (tmp_path / "another").read_bytes() == b"content"


def test_no_more_is_read_than_there_may_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert len(read_small(tmp_path / "file", 100)) == 100
    with pytest.raises(OSError, match="more than 99 bytes"):
        read_small(tmp_path / "file", 99)
    os.truncate(tmp_path / "file", 1 << 40)
    with pytest.raises(OSError, match="more than 4096 bytes"):
        read_small(tmp_path / "file", 4096)


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path: Path) -> None:
    left = [tmp_path / f".file.{'0a' * 16}.tmp", tmp_path / f".file.{'1b' * 16}.tmp"]
    others = [tmp_path / f".other.{'0a' * 16}.tmp", tmp_path / ".file.txt"]
    for path in (*left, *others):
        path.write_text("a beginning")
    write_durably(tmp_path / "file", "ours", alone=False)
    assert all(path.exists() for path in left), "somebody may be writing it"
    write_durably(tmp_path / "file", "ours")
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in others)


@pytest.mark.parametrize("umask", [0, 0o022, 0o277])
def test_texts_of_the_user_are_for_the_user_alone_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_durably(tmp_path / "file", "text", mode=0o600)
        append(tmp_path / "list", b"text")
        make_folder(tmp_path / "folder")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "list", "folder")]
    assert modes == [0o600, 0o600, 0o700]


def test_a_folder_of_ours_is_no_link(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "folder").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="it is a link"):
        make_folder(tmp_path / "folder")
    make_folder(tmp_path / "elsewhere")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file")


def test_what_others_may_write_is_not_private(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "file").chmod(0o622)
    assert read_small(tmp_path / "file", 1) == b"x"
    with pytest.raises(OSError, match="others may write it"):
        read_small(tmp_path / "file", 1, private=True)
