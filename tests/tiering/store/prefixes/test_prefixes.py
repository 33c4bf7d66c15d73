"""Prefixes on flash: found again by another process, within a quota, and never a wrong byte whatever happens."""

import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.tiering.errors import FlashFull, PrefixDamaged, PrefixVersionError
from penstock.tiering.prefix import header as headers
from penstock.tiering.prefix.breakeven import Speeds
from penstock.tiering.prefix.tree import orphans
from penstock.tiering.store.bundle.folder import PREFIXES
from penstock.tiering.store.prefixes import prefix_notes, prefixes
from penstock.tiering.store.prefixes.prefixes import PrefixStore
from penstock.tiering.units import PAGE, MiB
from tests.support import prefix_store_child as prefix_child
from tests.support.prefixes import BLOCK, ROOT, chain, load, save

ENOUGH = 10 * MiB
FILE = 4 * PAGE  # a header and a block
SLACK = 3 * PAGE  # the small files


@pytest.fixture
def store(tmp_path: Path) -> PrefixStore:
    return PrefixStore(tmp_path, ENOUGH)


def files(store: PrefixStore) -> list[Path]:
    return sorted(store.folder.glob("*.kv"))


def reopened(store: PrefixStore, quota: int = ENOUGH) -> PrefixStore:
    return PrefixStore(store.folder.parent, quota)


# --- found again ---


@pytest.mark.parametrize("direct", [None, False])
def test_a_prefix_is_found_for_any_continuation(tmp_path, direct):
    store = PrefixStore(tmp_path, ENOUGH, direct=direct)
    assert save(store, chain(1, 2, 3)) == files(store)[0].stat().st_size
    again = PrefixStore(tmp_path, ENOUGH, direct=direct)
    assert [load(again, chain(*t)) for t in [(1, 2, 3), (1, 2, 3, 4), (1, 2, 9), (9, 2, 3)]] == [3, 3, 2, 0]
    assert not again.verify()


def test_what_is_there_is_not_written_again(store):
    save(store, chain(1, 2))
    assert save(store, chain(1, 2)) == save(store, chain(1)) == 0
    assert save(store, chain(1, 2, 3)) < save(store, chain(7, 8, 9))
    assert load(reopened(store), chain(1, 2, 3)) == 3


def test_states_are_found_at_their_own_length(store):
    save(store, chain(1, 2, 3), state=True)
    assert [load(store, chain(*t), state=True) for t in [(1, 2, 3, 4), (1, 2)]] == [3, 0]
    assert 0 < save(store, chain(1, 2), state=True) < FILE  # its blocks are there
    assert save(store, chain(1, 2), state=True) == 0
    assert load(reopened(store), chain(1, 2, 9), state=True) == 2


def test_another_model_finds_nothing(store):
    save(store, chain(1, 2))
    assert load(store, chain(1, 2, root="00" * 32)) == 0


def test_only_this_user_can_look(tmp_path):
    (tmp_path / PREFIXES).mkdir(mode=0o755)
    store = PrefixStore(tmp_path, ENOUGH)
    save(store, chain(1))
    store.note(chain(1))
    store.measured(ROOT, lambda speeds: speeds.after_read(1, 1.0))
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in store.folder.iterdir()} == {0o600}


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"files":[{}],"checksum":""}', None])
def test_a_lost_index_is_made_again_from_headers(store, damage):
    save(store, chain(1, 2))
    index = store.folder / prefix_notes.INDEX
    assert prefix_notes.read_index(store.folder).keys() == {files(store)[0].name}
    index.unlink() if damage is None else index.write_bytes(damage)
    assert load(reopened(store), chain(1, 2)) == 2


def test_an_index_that_lies_is_found_out(store):
    save(store, chain(1, 2))
    save(store, chain(5, 6))
    known = prefix_notes.read_index(store.folder)
    (a, one), (b, other) = known.items()
    swapped = [replace(one, name=b), replace(other, name=a)]
    prefix_notes.write_index(store.folder, swapped)
    assert load(reopened(store), chain(1, 2)) == 0


# --- damage ---


def regions(path: Path) -> dict[str, int]:
    """An offset in each kind of region of a prefix file."""
    header = headers.parse(path.read_bytes()[: headers.length_of(path.read_bytes()[:PAGE], "f")], "f")
    first, last = header.blocks[0].offset, header.blocks[-1]
    return {
        "magic": 0, "version": 8, "length": 13, "digest": 20, "json": 300, "header padding": header.start - 1,
        "first keys": first, "padding": first + 5001, "last values": last.end - 1, "state": header.extents[-1].offset,
    }  # fmt: skip


@pytest.mark.parametrize("region", ["magic", "version", "length", "digest", "json", "header padding", "first keys",
                                    "padding", "last values", "state"])  # fmt: skip
def test_a_flipped_bit_anywhere_is_a_miss(store, region):
    save(store, chain(1, 2, 3), state=True)
    (path,) = files(store)
    raw = bytearray(path.read_bytes())
    raw[regions(path)[region]] ^= 0x40
    path.write_bytes(raw)
    (error,) = reopened(store).verify()
    assert str(path) in str(error)
    again = reopened(store)
    (again.folder / prefix_notes.INDEX).unlink()
    assert load(again, chain(1, 2, 3), state=True) == 0
    save(again, chain(1, 2, 3), state=True)
    assert load(again, chain(1, 2, 3), state=True) == 3


def test_what_lies_before_the_damage_stays(store):
    save(store, chain(1, 2, 3))
    save(store, chain(1, 2, 3, 4))
    path = max(files(store), key=lambda file: file.stat().st_size)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert load(store, chain(1, 2, 3, 4)) == 0
    assert load(store, chain(1, 2, 3, 4)) == 2
    assert not store.verify()
    assert len(files(store)) == 1  # what followed has gone too


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.8, 0.99])
def test_a_truncated_file_is_as_long_as_it_is(store, share):
    save(store, chain(1, 2, 3))
    (path,) = files(store)
    os.truncate(path, int(path.stat().st_size * share))
    for known in (store, reopened(store)):
        assert load(known, chain(1, 2, 3)) == {0: 0, 0.1: 0, 0.5: 1, 0.8: 2, 0.99: 2}[share]
    assert [type(error) for error in store.verify()] == [PrefixDamaged] * (share >= 0.5)


def test_a_file_of_a_newer_version_is_a_miss_and_stays(store, monkeypatch):
    monkeypatch.setattr(headers, "VERSION", 3)
    save(store, chain(1))
    monkeypatch.undo()
    again = reopened(store)
    (again.folder / prefix_notes.INDEX).unlink()
    again = reopened(store)
    assert load(again, chain(1)) == 0
    assert [type(error) for error in again.verify()] == [PrefixVersionError]
    save(again, chain(2))
    assert len(files(again)) == 2


def test_a_file_that_goes_while_it_is_read(store):
    save(store, chain(1, 2))
    save(store, chain(5, 6))
    found = store.open(chain(1, 2), with_state=False)
    store.prune(everything=True)
    assert found is not None
    with found:
        assert found.read_through()  # the descriptor keeps it
    assert load(store, chain(1, 2)) == 0


def test_a_file_that_is_shortened_while_it_is_read(store):
    save(store, chain(1, 2))
    found = store.open(chain(1, 2), with_state=False)
    os.truncate(files(store)[0], store.records()[0].ends[0])
    assert found is not None
    with found:
        assert not found.read_through()
    assert load(store, chain(1, 2)) == 1


# --- quota ---


def test_the_quota_holds_before_writing(tmp_path, monkeypatch):
    quota = 3 * FILE + SLACK
    store = PrefixStore(tmp_path, quota)
    most = 0
    written = prefixes.write

    def watched(*args, **options):
        nonlocal most
        header = written(*args, **options)
        most = max(most, sum(path.stat().st_size for path in store.folder.iterdir()))
        return header

    monkeypatch.setattr(prefixes, "write", watched)
    for token in range(12):
        assert save(store, chain(token)) == FILE
        assert load(store, chain(token)) == 1
        assert store.used_bytes() <= quota
    assert FILE < most <= quota
    assert [load(store, chain(token)) for token in (9, 10, 11)] == [1, 1, 1]
    assert load(store, chain(0)) == 0


def test_what_was_used_lately_stays(tmp_path):
    store = PrefixStore(tmp_path, 3 * FILE + SLACK)
    for token in (1, 2, 3):
        save(store, chain(token))
    for age, token in enumerate((1, 2, 3)):
        name = next(r.name for r in store.records() if r.hashes == chain(token).hashes)
        os.utime(store.folder / name, ns=(age, age))
    assert load(store, chain(1)) == 1
    save(store, chain(4))
    save(store, chain(5))
    assert [load(store, chain(token)) for token in (1, 2, 3)] == [1, 0, 0]


def test_a_prompt_too_long_for_the_quota_is_stored_in_part_or_not(tmp_path):
    store = PrefixStore(tmp_path, 4 * FILE)
    save(store, chain(*range(50)))
    assert 1 <= load(store, chain(*range(50))) <= 4
    assert store.used_bytes() <= store.quota
    assert save(store, chain(*range(60, 99)), state=True) == 0
    assert load(store, chain(*range(50))) >= 1  # nothing went for what does not fit
    assert save(PrefixStore(tmp_path / "none", 0), chain(1)) == 0


def test_prune(store):
    for token in (1, 2, 3):
        save(store, chain(token))
    assert store.prune(label="other") == 0
    assert store.prune(to=store.used_bytes() - 1) == FILE
    assert store.prune(before=1) == 0
    (store.folder / "damaged.kv").write_bytes(b"?" * PAGE)
    store.records()
    assert store.prune(everything=True) == 2 * FILE + PAGE
    assert files(store) == []


def test_a_full_drive_leaves_nothing_behind(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("penstock.kernels.io.directwrite.DirectWriter.write", full)
    with pytest.raises(FlashFull, match="full"):
        save(store, chain(1))
    assert not list(store.folder.glob("*.partial"))


# --- the small files ---


def test_seen_prefixes_are_remembered(store):
    assert store.seen(chain(1, 2)) == 0
    store.note(chain(1, 2))
    assert reopened(store).seen(chain(1, 2, 3)) == 2
    for token in range(0, 9000, 900):
        store.note(chain(*range(token, token + 900)))
    most = ENOUGH // 4096
    assert (store.folder / prefix_notes.SEEN).stat().st_size <= 16 * (2 * most + 900)
    assert store.seen(chain(*range(8100, 9000))) == 900


def test_speeds_are_remembered_for_each_model(store):
    store.measured(ROOT, lambda speeds: speeds.after_read(10, 1.0))
    store.measured("other", lambda speeds: speeds.after_prompt(3, 1.0))
    assert reopened(store).speeds(ROOT) == Speeds(read=10)
    (store.folder / prefix_notes.SPEEDS).write_text("{")
    assert store.speeds(ROOT) == Speeds()


# --- processes ---


def test_kill_at_any_moment_leaves_whole_prefixes_only(tmp_path):
    code = [sys.executable, "-m", "tests.support.prefix_store_child", "kill", str(tmp_path), "8"]
    killed = int(subprocess.run(code, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert killed >= 4
    store = PrefixStore(tmp_path, ENOUGH)
    assert not list(store.folder.glob("*.partial"))
    assert not store.verify()
    assert sum(load(store, prefix_child.prompt(seed)) for seed in range(40)) > 0
    assert save(store, chain(77)) == FILE


def test_a_living_writer_is_left_alone(store, monkeypatch):
    written = prefixes.write

    def watched(aside, *args, **options):
        assert list(reopened(store).folder.glob("*.partial")) == [aside.path]
        assert reopened(store).used_bytes() >= FILE  # what is being written counts
        return written(aside, *args, **options)

    monkeypatch.setattr(prefixes, "write", watched)
    assert save(store, chain(1)) == FILE
    (store.folder / f"{'0' * 32}.99.partial").write_bytes(b"x")
    assert not list(reopened(store).folder.glob("*.partial"))


def test_processes_share_a_store(tmp_path):
    code = [sys.executable, "-m", "tests.support.prefix_store_child", "together", str(tmp_path), "4"]
    hits = int(subprocess.run(code, check=True, capture_output=True, text=True, timeout=60).stdout)
    assert hits > 0
    store = PrefixStore(tmp_path, prefix_child.QUOTA)
    assert store.used_bytes() <= prefix_child.QUOTA
    assert not store.verify()


def test_two_that_write_the_same_keep_one(store, monkeypatch):
    written = prefixes.write
    other = reopened(store)

    def overtaken(*args, **options):
        monkeypatch.setattr(prefixes, "write", written)
        assert save(other, chain(1, 2)) > 0
        return written(*args, **options)

    monkeypatch.setattr(prefixes, "write", overtaken)
    assert save(store, chain(1, 2)) == 0
    assert len(files(store)) == 1
    assert load(store, chain(1, 2)) == 2


def test_what_lost_its_beginning_while_it_was_written_is_not_kept(store, monkeypatch):
    save(store, chain(1))
    written = prefixes.write

    def evicted(*args, **options):
        reopened(store).prune(everything=True)
        return written(*args, **options)

    monkeypatch.setattr(prefixes, "write", evicted)
    assert save(store, chain(1, 2)) == 0
    assert files(store) == []


def test_random_histories_stay_within_the_quota(tmp_path):
    chance = random.Random(5)
    store = PrefixStore(tmp_path, 12 * FILE)
    for _ in range(60):
        tokens = [chance.randrange(3) for _ in range(chance.randrange(1, 6))]
        state = chance.random() < 0.2
        save(store, chain(*tokens), state=state)
        assert load(store, chain(*tokens)) == len(tokens)
        assert store.used_bytes() <= store.quota
        assert all(len(record.hashes) * BLOCK <= record.tokens for record in store.records())
    assert not orphans(store.records())
    assert not store.verify()
