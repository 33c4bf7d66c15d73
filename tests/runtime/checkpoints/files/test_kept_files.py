"""Small files beside weights: caches that cannot be read are made anew, and what must be read is one clear line."""

import errno
import json
import os
from pathlib import Path

import pytest

from penstock.runtime.checkpoints.files import digest
from penstock.runtime.checkpoints.files.digest import digest_files
from penstock.runtime.checkpoints.files.model_files import refresh_model_folder, write_model_folder
from penstock.runtime.checkpoints.weights_note import WeightsNote, read_note, write_note
from penstock.tiering.errors import BundleError, FlashFull

NOTE = WeightsNote("ab" * 32, "cd" * 32, "ef" * 32)
STRANGE = [
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b"NaN",
    b"\xff\xfe",
    b"[]",
    b"7",
    b"9" * 5000,
    b'{"a":1}',
    b"",
    b" " * (40 << 20),
]


def put(what: str, path: Path) -> None:
    path.unlink(missing_ok=True)
    match what:
        case "pipe":
            os.mkfifo(path)
        case "link":
            path.symlink_to(path.with_name("another"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "model.safetensors").write_bytes(b"weights" * 1000)
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize("content", STRANGE)
def test_digests_that_cannot_be_read_are_found_again(tmp_path: Path, file: Path, content: bytes) -> None:
    found = digest_files([file], tmp_path)
    cache = tmp_path / "digests.json"
    before = cache.read_text()
    cache.write_bytes(content)
    assert digest_files([file], tmp_path) == found
    assert cache.read_text() == before


@pytest.mark.parametrize("what", ["pipe", "link"])
def test_digests_are_never_written_through_a_link(tmp_path: Path, file: Path, what: str) -> None:
    another = tmp_path / "another"
    another.write_text("precious")
    put("link", tmp_path / "digests.json.tmp")
    put(what, tmp_path / "digests.json")
    digest_files([file], tmp_path)
    assert another.read_text() == "precious"
    assert (tmp_path / "digests.json").is_file()
    assert not (tmp_path / "digests.json").is_symlink()


@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, FlashFull), (errno.EIO, BundleError)])
def test_digests_that_cannot_be_kept_name_the_folder(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(digest, "write_durably", fail)
    with pytest.raises(kind, match=str(tmp_path)) as caught:
        digest_files([file], tmp_path)
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("content", [*STRANGE, json.dumps({"source": 1, "own": "a", "plain": "b"}).encode()])
def test_a_note_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    write_note(tmp_path, NOTE)
    assert read_note(tmp_path) == NOTE
    (tmp_path / "weights.json").write_bytes(content)
    assert read_note(tmp_path) is None
    write_note(tmp_path, NOTE)
    assert read_note(tmp_path) == NOTE


def test_nothing_is_written_into_a_bundle_on_a_link(tmp_path: Path) -> None:
    (tmp_path / "moved" / "model").mkdir(parents=True)
    (tmp_path / "bundle").symlink_to(tmp_path / "moved")
    write_note(tmp_path / "bundle", NOTE)
    assert not refresh_model_folder(tmp_path / "bundle" / "model", {"config.json": "{}"})
    assert [path.name for path in (tmp_path / "moved").rglob("*")] == ["model"]


def test_a_model_folder_that_is_a_link_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "own").write_text("precious")
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")
    write_model_folder(tmp_path / "model", lambda folder: (folder / "config.json").write_text("{}") and None)
    assert not (tmp_path / "model").is_symlink()
    assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["own"]
