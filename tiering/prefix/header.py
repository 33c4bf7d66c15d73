"""The header of a prefix file (pure).

::

    preamble      magic, version, length of the header, SHA-256 of the header with zeros in its place
    JSON          which model, which tokens, which tensors; where each block lies, and its checksum
    zeros         up to a PAGE
    blocks        one after the other: the tensors of each, every one padded to a PAGE
    state         tensors that belong to the whole prefix, for models that cannot go on from any other length

A file that ends before a block or the state lacks it. The end of a prefix is evicted that way.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from math import prod
from typing import Any

from ..errors import PrefixDamaged, PrefixVersionError
from ..units import PAGE, align_up
from .chain import Chain

VERSION = 1
MAGIC = b"PNSTKKV\n"
LARGEST = 1 << 28
"""Most bytes of a valid header."""

_PREAMBLE = struct.Struct("<8sIQ32s")
_UNKNOWN = "0" * 16
_FAR = 1 << 60  # offsets with as many digits as there can be


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor: ``dtype`` as in ``torch.<dtype>``, ``length`` bytes, little-endian, contiguous."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    length: int

    @property
    def room(self) -> int:
        """Bytes of the tensor in the file."""
        return align_up(self.length, PAGE)


@dataclass(frozen=True, slots=True)
class Stored:
    """The place of a block or a state. ``checksum`` is the hexadecimal XXH3-64 of all of it, padding included."""

    offset: int
    length: int
    checksum: str = _UNKNOWN

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Header:
    """A run of blocks of one prefix. ``tokens`` follow ``first`` earlier blocks, named by ``parent``.

    ``label`` names the model for people. ``parts`` are the tensors of each block, ``state_parts`` those of the state
    behind the last block. ``state`` is None without one. ``explicit``: the user asked to keep it.
    """

    label: str
    root: str
    parent: str
    first: int
    block: int
    tokens: tuple[int, ...]
    parts: tuple[StoredTensor, ...]
    blocks: tuple[Stored, ...]
    state_parts: tuple[StoredTensor, ...]
    state: Stored | None
    explicit: bool

    @property
    def start(self) -> int:
        """Offset of the end of the header."""
        return self.extents[0].offset

    @property
    def extents(self) -> tuple[Stored, ...]:
        """The places of the blocks, and of the state if there is one."""
        return (*self.blocks, self.state) if self.state else self.blocks

    @property
    def end(self) -> int:
        """The length of the whole file."""
        return self.extents[-1].end

    def with_checksums(self, checksums: Sequence[str]) -> "Header":
        """The header with the checksum of each of ``extents``."""
        known = [replace(extent, checksum=c) for extent, c in zip(self.extents, checksums, strict=True)]
        state = known.pop() if self.state else None
        return replace(self, blocks=tuple(known), state=state)


def lay_out(
    chain: Chain,
    first: int,
    *,
    label: str,
    parts: Sequence[StoredTensor],
    state_parts: Sequence[StoredTensor] = (),
    explicit: bool = False,
) -> Header:
    """The header of a file for the blocks of ``chain`` from ``first`` on, without checksums."""
    count = len(chain.hashes) - first
    lengths = [sum(part.room for part in parts)] * count + [sum(part.room for part in state_parts)] * bool(state_parts)

    def placed(start: int) -> Header:
        ends = accumulate(lengths, initial=start)
        extents = [Stored(offset, length) for offset, length in zip(ends, lengths, strict=False)]
        state = extents.pop() if state_parts else None
        tokens = chain.span(first, count)
        return Header(
            label,
            chain.root,
            chain.before(first),
            first,
            chain.block,
            tokens,
            tuple(parts),
            tuple(extents),
            tuple(state_parts),
            state,
            explicit,
        )

    return placed(align_up(_PREAMBLE.size + len(_encode(placed(_FAR))), PAGE))


def dump(header: Header) -> bytes:
    """The bytes of the header in the file: ``header.start`` of them."""
    body = _encode(header).ljust(header.start - _PREAMBLE.size, b"\0")
    blank = _PREAMBLE.pack(MAGIC, VERSION, header.start, bytes(32))
    return _PREAMBLE.pack(MAGIC, VERSION, header.start, hashlib.sha256(blank + body).digest()) + body


def length_of(page: bytes, where: str) -> int:
    """Bytes of the header that begins with ``page``. Raises PrefixDamaged and PrefixVersionError as ``parse`` does."""
    if len(page) < _PREAMBLE.size:
        raise PrefixDamaged(f"{where} is damaged: it ends within its header")
    magic, version, length, _ = _PREAMBLE.unpack_from(page)
    if magic != MAGIC:
        raise PrefixDamaged(f"{where} is damaged: it is no prefix file")
    if version > VERSION:
        raise PrefixVersionError(f"{where} has version {version}, this penstock reads up to {VERSION}; upgrade it")
    if length % PAGE or not PAGE <= length <= LARGEST:
        raise PrefixDamaged(f"{where} is damaged: its header has an impossible length")
    return int(length)


def parse(raw: bytes, where: str) -> Header:
    """The inverse of ``dump``. ``where`` names the file in messages.

    Raises PrefixVersionError for a newer version, PrefixDamaged for any other fault.
    """
    length = length_of(raw, where)
    magic, version, _, digest = _PREAMBLE.unpack_from(raw)
    body = raw[_PREAMBLE.size :]
    blank = _PREAMBLE.pack(magic, version, length, bytes(32))
    if len(raw) != length or hashlib.sha256(blank + body).digest() != digest:
        raise PrefixDamaged(f"{where} is damaged: the checksum of its header does not match")
    try:
        header = _decode(json.loads(body.rstrip(b"\0")))
        _check(header, length)
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise PrefixDamaged(f"{where} is damaged: {error}") from error
    return header


def _encode(header: Header) -> bytes:
    return json.dumps(asdict(header), separators=(",", ":")).encode()


def _decode(raw: dict[str, Any]) -> Header:
    return Header(
        label=str(raw["label"]),
        root=str(raw["root"]),
        parent=str(raw["parent"]),
        first=int(raw["first"]),
        block=int(raw["block"]),
        tokens=tuple(map(int, raw["tokens"])),
        parts=_parts(raw["parts"]),
        blocks=tuple(Stored(**extent) for extent in raw["blocks"]),
        state_parts=_parts(raw["state_parts"]),
        state=Stored(**raw["state"]) if raw["state"] else None,
        explicit=bool(raw["explicit"]),
    )


def _parts(raw: list[dict[str, Any]]) -> tuple[StoredTensor, ...]:
    return tuple(StoredTensor(p["name"], p["dtype"], tuple(map(int, p["shape"])), int(p["length"])) for p in raw)


def _check(header: Header, start: int) -> None:
    if len(header.tokens) != len(header.blocks) * header.block or header.first < 0:
        raise ValueError("its tokens do not fill its blocks")
    if not header.extents or bool(header.state) != bool(header.state_parts):
        raise ValueError("it holds nothing, or tensors without a place")
    for parts, extents in ((header.parts, header.blocks), (header.state_parts, (header.state,) * bool(header.state))):
        if any(part.length < 0 or part.length % max(1, prod(part.shape)) for part in parts):
            raise ValueError("a tensor has an impossible length")
        for extent in extents:
            if extent is None or extent.offset != start or extent.length != sum(part.room for part in parts):
                raise ValueError("a block has an impossible place")
            start = extent.end
