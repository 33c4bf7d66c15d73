"""What lies in the place of a bundle's files: links, pipes, journals of any kind. Nothing outside is ever written."""

import json
import os
from pathlib import Path

import pytest

from penstock.tiering.errors import BundleError, ConfigError
from penstock.tiering.store.bundle import journal
from penstock.tiering.store.bundle.folder import locked, prepare
from penstock.tiering.store.bundle.manifest import BundleDrive
from penstock.tiering.store.bundle.reader import Bundle
from penstock.tiering.store.bundle.stripes import part_of
from tests.support.bundle_blocks import plan, write


@pytest.fixture
def another(tmp_path: Path) -> Path:
    """A file of the user, which nobody may change."""
    path = tmp_path / "another"
    path.write_bytes(b"precious" * 100_000)
    return path


def replace(place: Path, what: str, another: Path) -> None:
    place.unlink()
    os.mkfifo(place) if what == "pipe" else place.symlink_to(another)


@pytest.mark.parametrize("name", ["journal.jsonl", "data-00000.bin"])
@pytest.mark.parametrize("what", ["pipe", "link"])
def test_what_lies_in_an_unfinished_bundle_is_written_anew(
    target: Path, partial: Path, another: Path, name: str, what: str
) -> None:
    write(target, upto=4)
    replace(partial / name, what, another)
    write(target)
    assert another.read_bytes() == b"precious" * 100_000
    assert not any(path.is_symlink() for path in target.iterdir())
    with Bundle.open(target) as bundle:
        assert bundle.verify() == []


def test_a_link_under_the_manifests_old_temporary_name_overwrites_nothing(
    target: Path, partial: Path, another: Path
) -> None:
    write(target, upto=4)
    (partial / "manifest.json.tmp").symlink_to(another)
    (partial / "journal.jsonl.tmp").symlink_to(another)
    write(target)
    assert another.read_bytes() == b"precious" * 100_000


def test_an_unfinished_bundle_that_is_a_link_is_refused(target: Path, partial: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    partial.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match="it is a link"):
        write(target)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_finished_bundle_may_be_on_a_link(target: Path) -> None:
    write(target)
    target.rename(target.with_name("moved"))
    target.symlink_to(target.with_name("moved"))
    with Bundle.open(target) as bundle:
        assert bundle.verify() == []


@pytest.mark.parametrize("name", ["manifest.json", "data-00000.bin"])
def test_a_pipe_in_a_bundle_is_refused_without_waiting(target: Path, another: Path, name: str) -> None:
    write(target)
    replace(target / name, "pipe", another)
    with pytest.raises(BundleError, match=f"{name} cannot be .* it is not a regular file"):
        Bundle.open(target)


def test_a_manifest_that_is_too_long_is_refused_before_it_is_read(target: Path) -> None:
    write(target)
    os.truncate(target / "manifest.json", 1 << 40)
    with pytest.raises(BundleError, match="more than"):
        Bundle.open(target)


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_a_lock_that_is_none_is_named(tmp_path: Path, what: str) -> None:
    lock = tmp_path / "bundle.lock"
    os.mkfifo(lock) if what == "pipe" else lock.symlink_to(tmp_path / "nowhere")
    with pytest.raises(BundleError, match=r"bundle.lock is no lock file .* remove it"), locked(tmp_path / "bundle"):
        pass
    assert not (tmp_path / "nowhere").exists()


def test_the_store_may_be_on_a_link_but_not_on_one_to_nowhere(tmp_path: Path) -> None:
    (tmp_path / "drive").mkdir()
    (tmp_path / "store").symlink_to(tmp_path / "drive")
    assert prepare(tmp_path / "store") == tmp_path / "store"
    (tmp_path / "lost").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="it is a link"):
        prepare(tmp_path / "lost")


@pytest.mark.parametrize(
    "line",
    [b"[" * 100_000, b"NaN", b"\xff", b"9" * 5000, b"{}", b"[]", b"null", b"7", b'[["dense","b0",0],[0,0,8192],7]',
     b'[["dense","b0",false],[0,0,8192],"0123456789abcdef"]', b'[["dense","b0",0],[0,0.0,8192],"0123456789abcdef"]',
     b'[["dense","b0",0],[0,0,8192],"not a checksum"]'],
)  # fmt: skip
def test_a_line_of_another_kind_ends_what_is_known(tmp_path: Path, line: bytes) -> None:
    blocks, _ = plan()
    path = tmp_path / journal.NAME
    good = [journal.format_line(block).replace('""', '"0123456789abcdef"').encode() for block in blocks]
    path.write_bytes(b"".join(good))
    assert len(journal.read(path, blocks)) == len(blocks)
    path.write_bytes(good[0] + line + b"\n" + good[1])
    assert len(journal.read(path, blocks)) == 1


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, "NaN", "{}", "7", '[["",1],["relative",1]]', '[["",true]]', '[["",-1]]', f'[["",{1 << 70}]]',
     '[["","1"]]', '[["",1.5]]', '[["a\\u0000b",1]]', '[[""]]'],
)  # fmt: skip
def test_drives_that_cannot_be_read_are_none(tmp_path: Path, text: str) -> None:
    journal.begin(tmp_path, [BundleDrive("", 5), BundleDrive("/other", 7)])
    assert journal.read_drives(tmp_path) == (BundleDrive("", 5), BundleDrive("/other", 7))
    (tmp_path / journal.DRIVES).write_text(text)
    assert journal.read_drives(tmp_path) == ()
    (tmp_path / journal.DRIVES).write_text(json.dumps([["", 5]] + [["/x", 1]] * 200_000))
    assert journal.read_drives(tmp_path) == ()


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_the_stores_id_is_drawn_again_where_it_is_none(tmp_path: Path, another: Path, what: str) -> None:
    first = part_of(tmp_path / "B", tmp_path)
    assert part_of(tmp_path / "B", tmp_path) == first
    replace(tmp_path / "store.id", what, another)
    second = part_of(tmp_path / "B", tmp_path)
    assert second != first
    assert part_of(tmp_path / "B", tmp_path) == second
    assert another.read_bytes() == b"precious" * 100_000
