"""Headers of GGUF files: what is not as it must be is refused, by name, before anything is made of it."""

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from gguf.constants import GGML_QUANT_SIZES

from penstock.runtime.checkpoints.files.gguf_header import parse_gguf_header
from penstock.runtime.checkpoints.files.gguf_types import BLOCK_TYPES
from penstock.tiering.errors import CheckpointError

F32, Q8_0, Q4_K = 0, 8, 12


def text(value: bytes | str) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: bytes | str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str, shape: tuple[int, ...], kind: int = F32, at: int = 0, dimensions: int | None = None) -> bytes:
    """``shape`` as the file has it: the length of a row first."""
    count = len(shape) if dimensions is None else dimensions
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", count, *shape, kind, at)


class Parts(NamedTuple):
    """What a file is made of."""

    entries: list[bytes]
    tensors: list[bytes]
    data: int = 64
    magic: bytes = b"GGUF"
    version: int = 3
    counts: tuple[int, int] | None = None
    padding: bytes = b"\0"
    alignment: int = 32


ARCHITECTURE = entry("general.architecture", 8, text("llama"))
HONEST = Parts([ARCHITECTURE], [tensor("a", (8,)), tensor("b", (4, 2), at=32)])


def write(folder: Path, parts: Parts) -> Path:
    tensors, entries = parts.counts or (len(parts.tensors), len(parts.entries))
    head = parts.magic + struct.pack("<IQQ", parts.version, tensors, entries)
    head += b"".join(parts.entries) + b"".join(parts.tensors)
    head += parts.padding * (-len(head) % parts.alignment)
    path = folder / "model.gguf"
    path.write_bytes(head + bytes(parts.data))
    return path


def test_a_header_says_what_is_in_the_file(tmp_path: Path) -> None:
    entries = [
        ARCHITECTURE,
        entry("n", 4, struct.pack("<I", 7)),
        entry("f", 6, struct.pack("<f", 0.5)),
        entry("yes", 7, b"\1"),
        entry("few", 9, struct.pack("<IQ3i", 5, 3, 1, -2, 3)),
        entry("tokenizer.tokens", 9, struct.pack("<IQ", 8, 3) + text("x") + text("") + text("yy")),
        entry("tokenizer.scores", 9, struct.pack("<IQ", 6, 5000) + bytes(20_000)),
    ]
    tensors = [tensor("a", (64, 3), Q8_0), tensor("b", (4, 2), at=224)]
    path = write(tmp_path, Parts(entries, tensors, data=256))
    found = parse_gguf_header(path)
    assert found.values == {"general.architecture": "llama", "n": 7, "f": 0.5, "yes": True}
    assert found.arrays["few"].values == (1, -2, 3)
    assert {key: each.count for key, each in found.arrays.items()} == {
        "few": 3,
        "tokenizer.tokens": 3,
        "tokenizer.scores": 5000,
    }
    first, second = found.tensors.values()
    start = path.stat().st_size - 256
    assert first == ("a", "Q8_0", (3, 64), start, 204)
    assert second == ("b", "F32", (2, 4), start + 224, 32)
    assert found.short == tuple(entries[:5])


def test_the_types_are_those_of_the_gguf_package() -> None:
    assert {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()} == BLOCK_TYPES


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        (HONEST._replace(magic=b"GGML"), "does not begin with GGUF"),
        (HONEST._replace(version=0x03000000), "big-endian"),
        (HONEST._replace(version=1), "version 1"),
        (HONEST._replace(version=4), "version 4"),
        (HONEST._replace(counts=(1 << 31, 1)), "no room"),
        (HONEST._replace(counts=(2, (1 << 64) - 1)), "no room"),
        (HONEST._replace(counts=(1, 1)), "the file at|between its header"),
        (HONEST._replace(counts=(2, 0)), "model.gguf"),
        (HONEST._replace(entries=[ARCHITECTURE, ARCHITECTURE]), "'general.architecture' occurs twice"),
        (HONEST._replace(entries=[entry("", 4, bytes(4))]), "a key is ''"),
        (HONEST._replace(entries=[entry("a\nb", 4, bytes(4))]), "a key is 'a"),
        (HONEST._replace(tensors=[tensor("a\nb", (8,))]), "the name of a tensor is 'a"),
        (HONEST._replace(entries=[entry(b"\xff", 4, bytes(4))]), "not UTF-8"),
        (HONEST._replace(entries=[entry("x", 8, text(b"\xff"))]), "x is not UTF-8"),
        (HONEST._replace(entries=[entry("x", 13, bytes(4))]), "x is of type 13"),
        (HONEST._replace(entries=[entry("x", 7, b"\2")]), "neither true nor false"),
        (HONEST._replace(entries=[entry("x", 6, struct.pack("<f", float("nan")))]), "x is not a number"),
        (HONEST._replace(entries=[entry("x", 8, struct.pack("<Q", 1 << 62))]), "x"),
        (HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 9, 1))]), "array of arrays"),
        (HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 8, 1 << 31))]), "2147483648 strings"),
        (HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 4, 1 << 62))]), "numbers, needs"),
        (HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 99, 1))]), "type 99"),
        (HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 0, 5000) + bytes(5000))]), "than any model"),
        (HONEST._replace(entries=[entry("general.alignment", 4, struct.pack("<I", 0))]), "general.alignment is 0"),
        (HONEST._replace(entries=[entry("general.alignment", 4, struct.pack("<I", 48))]), "alignment is 48"),
        (HONEST._replace(entries=[entry("general.alignment", 4, struct.pack("<I", 1 << 31))]), "alignment is 2147"),
        (HONEST._replace(entries=[entry("general.alignment", 8, text("32"))]), "general.alignment is '32'"),
        (HONEST._replace(tensors=[tensor("a", (8,)), tensor("a", (8,), at=32)]), "two tensors are called a"),
        (HONEST._replace(tensors=[tensor("a", ())]), "0 dimensions"),
        (HONEST._replace(tensors=[tensor("a", (1,) * 5)]), "5 dimensions"),
        (HONEST._replace(tensors=[tensor("a", (8,), dimensions=1 << 30)]), "dimensions"),
        (HONEST._replace(tensors=[tensor("a", (0, 4))]), r"has shape \[4, 0\]"),
        (HONEST._replace(tensors=[tensor("a", (1 << 32, 1 << 32, 1))]), "the file at"),
        (HONEST._replace(tensors=[tensor("a", (1 << 63, 2))]), "the file at"),
        (HONEST._replace(tensors=[tensor("a", (8,), kind=4)]), "type 4, which penstock does not know"),
        (HONEST._replace(tensors=[tensor("a", (48,), Q8_0)]), "Q8_0 has shape"),
        (HONEST._replace(tensors=[tensor("a", (128,), Q4_K)]), "Q4_K has shape"),
        (HONEST._replace(tensors=[tensor("a", (8,)), tensor("b", (8,), at=0)]), "its place is 32"),
        (HONEST._replace(tensors=[tensor("a", (8,)), tensor("b", (8,), at=16)]), "its place is 32"),
        (HONEST._replace(tensors=[tensor("a", (8,)), tensor("b", (8,), at=64)]), "its place is 32"),
        (HONEST._replace(tensors=[tensor("a", (8,), at=1 << 63)]), "its place is 0"),
        (HONEST._replace(data=63), "ends at"),
        (HONEST._replace(data=96), "its tensors end at"),
        (HONEST._replace(data=70), "its tensors end at"),
        (HONEST._replace(padding=b"\1"), "between its header and its tensors"),
    ],
)
def test_a_header_that_lies_is_refused(parts: Parts, says: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=says) as caught:
        parse_gguf_header(write(tmp_path, parts))
    assert "model.gguf" in str(caught.value)


def test_fewer_bytes_in_a_key_do_not_move_the_tensors_unnoticed(tmp_path: Path) -> None:
    entries = [ARCHITECTURE, entry("llama.rope.dimension_count", 4, bytes(4))]
    raw = write(tmp_path, HONEST._replace(entries=entries)).read_bytes()
    shorter = raw.replace(text("llama.rope.dimension_count"), text("llama.rope.dimension"))
    (tmp_path / "model.gguf").write_bytes(shorter)
    with pytest.raises(CheckpointError, match=r"ends? at \d+, the file at"):
        parse_gguf_header(tmp_path / "model.gguf")


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path, HONEST)
    raw = path.read_bytes()
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            parse_gguf_header(path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: HONEST._replace(tensors=[tensor(f"t{n}", (0,)) for n in range(50_000)]),
        lambda: HONEST._replace(entries=[entry(f"k{n}", 0, b"\0") for n in range(70_000)]),
        lambda: HONEST._replace(entries=[entry("x", 9, struct.pack("<IQ", 8, 2_000_000) + bytes(16_000_000))]),
    ],
    ids=["50,000 empty tensors", "70,000 entries", "2,000,000 empty strings"],
)
def test_many_of_something_take_no_time(make: Callable[[], Parts], tmp_path: Path) -> None:
    path = write(tmp_path, make())
    start = time.thread_time()
    try:
        parse_gguf_header(path)
    except CheckpointError as error:
        assert "model.gguf" in str(error)  # noqa: PT017
    assert time.thread_time() - start < 5


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match="not a regular file"):
        parse_gguf_header(tmp_path / "model.gguf")
