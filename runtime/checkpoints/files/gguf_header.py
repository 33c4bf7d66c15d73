"""A strict parse of a GGUF file's header: what it says is compared with the file before anything is made of it.

Long arrays, as a vocabulary, are only walked over; ``gguf_metadata`` reads them where somebody asks. What holds
afterwards: counts and lengths fit into the file, keys
and names occur once, each tensor has a type that is known, rows of whole blocks, and the bytes that type and shape ask
for; tensors lie one behind the other, each at the first place that is aligned, up to the end of the file, as llama.cpp
demands.
"""

import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from ....tiering.errors import CheckpointError
from ....tiering.units import MiB, format_size
from .gguf_types import ARRAY, BLOCK_TYPES, SCALARS, STRING, GgufArray, GgufHeader, HeaderTensor, Value
from .regular import RegularFile

HEADER_LIMIT = 256 * MiB
"""Bytes of the longest header. A vocabulary of 250,000 tokens with its merges takes 20 MB."""

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_BOOL = 7
_ALIGNMENT, _LARGEST_ALIGNMENT = 32, 1 * MiB
_DIMENSIONS = 4
_LONGEST_KEY, _LONGEST_NAME = 65535, 1024
_SHORT = 4096
"""Numbers of the longest array that may say something for each layer."""
_LEAST_ENTRY = 8 + 4 + 1
"""Bytes of an entry at least: the length of its key, its type, a value."""
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8
_MOST_ENTRIES = 65536
_MOST_TENSORS, _TENSOR_SHARE = 10_000, 4096
"""Tensors of the smallest files; larger ones may have one more for each so many bytes."""
_STEP = 4 * MiB
_NOT_TEXT = "mmproj"
"""How the names of files begin that see or hear for the model beside them."""


def is_gguf(path: Path) -> bool:
    """Whether ``path`` is a file that says so."""
    try:
        with RegularFile(path) as file:
            return file.size >= 4 and file.read(0, 4) == _MAGIC
    except CheckpointError:
        return False


def find_gguf(path: Path) -> Path | None:
    """The GGUF file ``path``, or the one in the folder ``path``, if that has no weights of another kind; None if it is
    neither. Raises CheckpointError for a folder that has several."""
    if path.is_file():
        return path if is_gguf(path) else None
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return None
    found = sorted(file for file in path.glob("*.gguf") if is_gguf(file) and not file.name.startswith(_NOT_TEXT))
    if len(found) > 1:
        names = ", ".join(f"{file.name} ({format_size(file.stat().st_size)})" for file in found)
        raise CheckpointError(f"{path} has several GGUF files; name the one that is meant: {names}")
    return found[0] if found else None


def parse_gguf_header(path: Path) -> GgufHeader:
    """The header of the file at ``path``. Raises CheckpointError, which names the file and the place."""
    with RegularFile(path) as file:
        reader = _Reader(path, file)
        version, tensors, entries = _prelude(reader)
        values: dict[str, Value] = {}
        arrays: dict[str, GgufArray] = {}
        short: list[bytes] = []
        for _ in range(entries):
            start = reader.at
            key = reader.string("a key", _LONGEST_KEY)
            if not key or not key.isprintable():
                reader.refuse(f"a key is {key[:200]!a}")
            if key in values or key in arrays:
                reader.refuse(f"the key {key!r} occurs twice")
            found = _value(reader, key)
            if isinstance(found, GgufArray):
                arrays[key] = found
                keep = found.values is not None
            else:
                values[key] = found
                keep = True
            if keep:
                short.append(reader.since(start))
        infos = [_tensor_info(reader) for _ in range(tensors)]
        placed = _place(reader, infos, _alignment(reader, values))
    return GgufHeader(version, values, arrays, placed, tuple(short))


class _Reader:
    """Takes values off the start of a file, which is read as far as needed."""

    def __init__(self, path: Path, file: RegularFile) -> None:
        self.path, self.size = path, file.size
        self.at = 0
        self._file = file
        self._raw = bytearray()

    def refuse(self, what: str) -> NoReturn:
        """Raise CheckpointError."""
        raise CheckpointError(f"{self.path} is truncated or damaged at byte {self.at}: {what}; fetch it again")

    def need(self, length: int, what: str) -> None:
        """Have ``length`` bytes more in memory. Raises CheckpointError where the file has them not."""
        end = self.at + length
        if end <= len(self._raw):
            return
        self.check(length, what)
        if end > HEADER_LIMIT:
            self.refuse(f"its header is longer than {HEADER_LIMIT} bytes")
        self._raw += self._file.read(len(self._raw), min(self.size, end + _STEP) - len(self._raw))

    def check(self, length: int, what: str) -> None:
        """Raise CheckpointError unless the file has ``length`` bytes more."""
        if self.at + length > self.size:
            self.refuse(f"{what} needs {length} bytes, the file has {self.size - self.at} more")

    def take(self, code: str, what: str) -> tuple[Any, ...]:
        """Values of the ``struct`` codes ``code``, little-endian."""
        form = struct.Struct(f"<{code}")
        self.need(form.size, what)
        found = form.unpack_from(self._raw, self.at)
        self.at += form.size
        return found

    def number(self, code: str, what: str) -> int:
        """One natural number."""
        return int(self.take(code, what)[0])

    def string(self, what: str, longest: int = HEADER_LIMIT) -> str:
        """A length and so many bytes of UTF-8."""
        length = self.number("Q", what)
        if length > longest:
            self.refuse(f"{what} claims {length} bytes")
        self.need(length, what)
        raw = self._raw[self.at : self.at + length]
        try:
            found = raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not UTF-8")
        self.at += length
        return found

    def skip_strings(self, count: int, what: str) -> None:
        """Pass ``count`` strings."""
        length_of = struct.Struct("<Q").unpack_from
        self.check(8 * count, what)
        raw, loaded = self._raw, len(self._raw)
        for _ in range(count):
            if self.at + 8 > loaded:
                self.need(8, what)
                loaded = len(raw)
            self.at += 8 + length_of(raw, self.at)[0]
        self.check(0, what)

    def since(self, start: int) -> bytes:
        """The bytes from ``start`` to here."""
        return bytes(self._raw[start : self.at])


def _prelude(reader: _Reader) -> tuple[int, int, int]:
    """Version, and the numbers of tensors and entries, which the file has room for."""
    if bytes(reader.take("4s", "its first word")[0]) != _MAGIC:
        reader.refuse("it does not begin with GGUF")
    version = reader.number("I", "its version")
    if version & 0xFFFF == 0 and version:
        raise CheckpointError(
            f"{reader.path} is big-endian, and penstock reads little-endian GGUF files; take the other file, or "
            "convert it: gguf-convert-endian"
        )
    if version not in _VERSIONS:
        raise CheckpointError(
            f"{reader.path} is a GGUF file of version {version}, and penstock reads 2 and 3; convert it with "
            "a newer llama.cpp"
        )
    tensors, entries = reader.number("Q", "its counts"), reader.number("Q", "its counts")
    room = min(reader.size, HEADER_LIMIT) - reader.at
    if tensors * _LEAST_TENSOR + entries * _LEAST_ENTRY > room:
        reader.refuse(f"it claims {tensors} tensors and {entries} entries, for which it has no room")
    if tensors > _MOST_TENSORS + reader.size // _TENSOR_SHARE or entries > _MOST_ENTRIES:
        raise CheckpointError(
            f"{reader.path} has {tensors} tensors and {entries} entries in {reader.size} bytes, which no model has; "
            "take another file"
        )
    return version, tensors, entries


def _value(reader: _Reader, key: str) -> Value | GgufArray:
    kind = reader.number("I", key)
    if kind == ARRAY:
        return _array(reader, key)
    if kind == STRING:
        return reader.string(key)
    found: Value = reader.take(_code(reader, kind, key), key)[0]
    if kind == _BOOL and reader.since(reader.at - 1) not in (b"\0", b"\1"):
        reader.refuse(f"{key} is neither true nor false")
    if isinstance(found, float) and math.isnan(found):
        reader.refuse(f"{key} is not a number")
    return found


def _array(reader: _Reader, key: str) -> GgufArray:
    kind, count = reader.number("I", key), reader.number("Q", key)
    if kind == ARRAY:
        reader.refuse(f"{key} is an array of arrays")
    start = reader.at
    if kind == STRING:
        reader.skip_strings(count, f"{key}, {count} strings,")
        return GgufArray(kind, count, None, start, reader.at - start)
    code = _code(reader, kind, key)
    length = count * struct.calcsize(f"<{code}")
    reader.need(length, f"{key}, {count} numbers,")
    if count <= _SHORT:
        values = reader.take(f"{count}{code}", key)
        if any(isinstance(value, float) and math.isnan(value) for value in values):
            reader.refuse(f"{key} has a value that is not a number")
        return GgufArray(kind, count, values, start, length)
    if not key.startswith("tokenizer."):
        reader.refuse(f"{key} has {count} numbers, more than any model has layers")
    reader.at += length
    return GgufArray(kind, count, None, start, length)


def _code(reader: _Reader, kind: int, key: str) -> str:
    if kind not in SCALARS:
        reader.refuse(f"{key} is of type {kind}, which is none")
    return SCALARS[kind]


class _Info(NamedTuple):
    """A tensor as the header has it: ``at`` is its place behind the header."""

    name: str
    shape: tuple[int, ...]
    kind: int
    at: int


def _tensor_info(reader: _Reader) -> _Info:
    name = reader.string("the name of a tensor", _LONGEST_NAME)
    if not name.isprintable():
        reader.refuse(f"the name of a tensor is {name[:200]!a}")
    dimensions = reader.number("I", name)
    if not 1 <= dimensions <= _DIMENSIONS:
        reader.refuse(f"tensor {name} has {dimensions} dimensions, not 1 to {_DIMENSIONS}")
    shape = tuple(map(int, reader.take(f"{dimensions}Q", name)))
    return _Info(name, shape[::-1], reader.number("I", name), reader.number("Q", name))


def _alignment(reader: _Reader, values: Mapping[str, Value]) -> int:
    found = values.get("general.alignment", _ALIGNMENT)
    if type(found) is not int or not 1 <= found <= _LARGEST_ALIGNMENT or found & (found - 1):
        reader.refuse(f"general.alignment is {found!r}, not a power of two up to {_LARGEST_ALIGNMENT}")
    return found


def _place(reader: _Reader, infos: list[_Info], alignment: int) -> dict[str, HeaderTensor]:
    """The tensors at their places in the file, which end where it does."""
    start = reader.at + -reader.at % alignment
    if infos:
        reader.need(start - reader.at, "the end of its header")
        padding, reader.at = reader.at, start
        if any(reader.since(padding)):
            reader.refuse("there is something between its header and its tensors")
    placed: dict[str, HeaderTensor] = {}
    end = start
    for info in infos:
        if info.name in placed:
            reader.refuse(f"two tensors are called {info.name}")
        begin = end + -(end - start) % alignment
        if info.at != begin - start:
            reader.refuse(f"tensor {info.name} lies at {info.at} behind the header, and its place is {begin - start}")
        kind, length = _measure(reader, info)
        end = begin + length
        if end > reader.size:
            reader.refuse(f"tensor {info.name} ends at {end}, the file at {reader.size}")
        placed[info.name] = HeaderTensor(info.name, kind, info.shape, begin, length)
    # Exactly: a few bytes more or less in the header would leave every tensor beside its place.
    if infos and reader.size not in (end, end + -(end - start) % alignment):
        reader.refuse(f"its tensors end at {end}, the file at {reader.size}")
    return placed


def _measure(reader: _Reader, info: _Info) -> tuple[str, int]:
    """The name of a tensor's type, and its bytes."""
    if info.kind not in BLOCK_TYPES:
        raise CheckpointError(
            f"{reader.path}: tensor {info.name} is of type {info.kind}, which penstock does not know; take the model "
            "in another type, or a newer penstock"
        )
    name, numbers, length = BLOCK_TYPES[info.kind]
    if 0 in info.shape or info.shape[-1] % numbers:
        reader.refuse(f"tensor {info.name} of type {name} has shape {list(info.shape)}")
    return name, math.prod(info.shape) // numbers * length
