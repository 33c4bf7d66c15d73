"""The folder of stored prompts as a stranger may have left it: other versions, links, pipes, notes of any kind."""

import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.tiering.errors import ConfigError, FlashFull, PrefixError
from penstock.tiering.prefix import header as headers
from penstock.tiering.prefix.breakeven import Speeds
from penstock.tiering.store.bundle.folder import PREFIXES
from penstock.tiering.store.prefixes import prefix_notes
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import PAGE, MiB
from tests.support.prefixes import BLOCK, PARTS, ROOT, chain, load, save

ENOUGH = 10 * MiB


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path, ENOUGH)


def files(store: PrefixStore) -> list[Path]:
    return sorted(store.folder.glob("*.kv"))


def reopened(store: PrefixStore) -> PrefixStore:
    return PrefixStore(store.folder.parent, ENOUGH)


def rewritten(path: Path, change) -> None:
    """The prefix file ``path``, with its header as ``change`` makes it, under a hash that is right."""
    raw = path.read_bytes()
    header = headers.parse(raw[: headers.length_of(raw[:PAGE], "f")], "f")
    path.write_bytes(headers.dump(change(header)) + raw[header.start :])


def test_a_file_that_says_more_than_it_has_is_a_miss(store):
    save(store, chain(1, 2))
    (path,) = files(store)
    huge = tuple(replace(part, shape=(1 << 20, BLOCK, 1 << 20)) for part in PARTS)
    rewritten(path, lambda header: replace(header, parts=huge))
    (store.folder / prefix_notes.INDEX).unlink()
    again = reopened(store)
    assert load(again, chain(1, 2)) == 0
    assert files(again) == []  # it holds nothing


def test_a_file_of_the_version_before_is_absent_and_goes_with_the_next_prompt(store, monkeypatch):
    monkeypatch.setattr(headers, "VERSION", 1)
    save(store, chain(1))
    monkeypatch.undo()
    (store.folder / prefix_notes.INDEX).unlink()
    again = reopened(store)
    assert load(again, chain(1)) == 0
    assert ["version 1" in str(error) for error in again.verify()] == [True]
    save(again, chain(2))
    assert [load(again, chain(n)) for n in (1, 2)] == [0, 1]
    assert len(files(again)) == 1


# --- what is no file of ours ---


@pytest.mark.parametrize("name", ["a.kv", "a.99.partial", prefix_notes.SEEN, prefix_notes.SPEEDS, prefix_notes.INDEX])
@pytest.mark.parametrize("what", ["pipe", "link", "dangling"])
def test_what_lies_in_the_place_of_a_file_is_replaced_and_never_followed(store, tmp_path, name, what):
    save(store, chain(1, 2))
    another, place = tmp_path / "another", store.folder / name
    another.write_bytes(files(store)[0].read_bytes())
    before = another.read_bytes(), another.stat().st_mtime_ns
    place.unlink(missing_ok=True)
    os.mkfifo(place) if what == "pipe" else place.symlink_to(another if what == "link" else tmp_path / "nowhere")
    again = reopened(store)
    assert load(again, chain(1, 2)) == 2
    again.note(chain(5))
    again.measured(ROOT, lambda speeds: speeds.after_read(10, 1.0))
    save(again, chain(5))
    assert (load(again, chain(5)), again.seen(chain(5)), again.speeds(ROOT).read) == (1, 1, 10)
    assert all(path.is_file() and not path.is_symlink() for path in store.folder.iterdir())
    again.prune(everything=True)
    assert (another.read_bytes(), another.stat().st_mtime_ns) == before
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_a_lock_that_is_none_is_named(tmp_path, what):
    (tmp_path / PREFIXES).mkdir()
    lock = tmp_path / PREFIXES / "store.lock"
    os.mkfifo(lock) if what == "pipe" else lock.symlink_to(tmp_path / "nowhere")
    with pytest.raises(PrefixError, match=r"store.lock is no lock file .* remove it"):
        PrefixStore(tmp_path, ENOUGH)
    assert not (tmp_path / "nowhere").exists()


def test_the_store_may_be_on_a_link_and_what_is_below_it_may_not(tmp_path):
    (tmp_path / "drive").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "drive")
    store = PrefixStore(tmp_path / "store", ENOUGH)
    save(store, chain(1))
    assert load(store, chain(1)) == 1
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / PREFIXES).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="it is a link"):
        PrefixStore(tmp_path / "other", ENOUGH)
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    "damage",
    [
        b"[" * 100_000,
        b"NaN",
        b"\xff",
        b"[]",
        b'{"a":1}',
        b'{"checksum":"","files":[]}',
        b"9" * 5000,
        b'{"r":{"read":"1","reading":null,"prompts":[]}}',
        b" " * (17 << 20),
    ],
)
@pytest.mark.parametrize("name", [prefix_notes.SEEN, prefix_notes.SPEEDS, prefix_notes.INDEX])
def test_notes_that_cannot_be_read_are_made_anew(store, name, damage):
    save(store, chain(1, 2))
    (store.folder / name).write_bytes(damage)
    again = reopened(store)
    assert load(again, chain(1, 2)) == 2
    again.note(chain(5))
    again.measured(ROOT, lambda speeds: speeds.after_read(10, 1.0))
    save(again, chain(5))
    assert (again.seen(chain(5)), again.speeds(ROOT)) == (1, Speeds(read=10))
    assert len(prefix_notes.read_index(store.folder)) == 2


@pytest.mark.parametrize("umask", [0, 0o277])
def test_files_are_for_this_user_alone_whatever_the_umask(tmp_path, umask):
    before = os.umask(umask)
    try:
        store = PrefixStore(tmp_path / "store", ENOUGH)
        save(store, chain(1))
        store.note(chain(1))
    finally:
        os.umask(before)
    assert [folder.stat().st_mode & 0o777 for folder in (store.folder, store.folder.parent)] == [0o700] * 2
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_note_that_cannot_be_written_names_the_folder_and_no_number(store, monkeypatch, number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number), "/somewhere/.seen.0123.tmp")

    monkeypatch.setattr(prefix_notes, "append", fail)
    monkeypatch.setattr(prefix_notes, "write_durably", fail)
    for work in (
        lambda: store.note(chain(1)),
        lambda: store.measured(ROOT, lambda s: s),
        lambda: save(store, chain(1)),
    ):
        with pytest.raises((FlashFull, PrefixError)) as caught:
            work()
        assert "Errno" not in str(caught.value)
        if number != errno.EIO:
            assert f"the drive of {store.folder} is full" in str(caught.value)
            assert "penstock cache prune" in str(caught.value)
