"""Small JSON files: those of another kind, nested deep, or long, are one clear line."""

import os
from pathlib import Path

import pytest

from penstock.runtime.checkpoints.files.bounds import WITHOUT_FILES
from penstock.runtime.checkpoints.files.json_file import read_object
from penstock.runtime.checkpoints.files.regular import RegularFile, open_descriptor
from penstock.runtime.checkpoints.files.small_files import check_small_files
from penstock.runtime.checkpoints.files.source_file import SourceFile
from penstock.tiering.errors import CheckpointError


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "Expecting value"),
        (b"[]", "array"),
        (b"1", "number"),
        (b'"x"', "string"),
        (b"null", "constant"),
        (b"\xff\xfe{", "."),
        (b"[" * 200_000, "64 deep"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "64 deep"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": ' + b"9" * 5000 + b"}", "integer"),
    ],
)
def test_what_is_no_object_is_said(content: bytes, says: str, tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as caught:
        read_object(path)
    assert str(path) in str(caught.value)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        check_small_files(tmp_path, WITHOUT_FILES)


def test_what_a_configuration_has_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"limit": [0.0, Infinity], "a": {"b": [1]}}')
    assert read_object(path) == {"limit": [0.0, float("inf")], "a": {"b": [1]}}


def test_a_long_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(CheckpointError, match="bytes"):
        read_object(path)
    path.rename(tmp_path / "tokenizer.json")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json"):
        check_small_files(tmp_path, WITHOUT_FILES)


@pytest.mark.parametrize("opening", [open_descriptor, RegularFile, SourceFile])
def test_pipes_folders_and_absent_files_are_not_opened(opening: object, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "none", Path("/dev/zero"), tmp_path / "a\0b"):
        with pytest.raises(CheckpointError, match=r"not a regular file|cannot be read"):
            opening(path)  # type: ignore[operator]


def test_a_file_that_shrinks_is_said(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(bytes(10))
    with RegularFile(tmp_path / "x") as file, pytest.raises(CheckpointError, match="shorter"):
        file.read(5, 6)
