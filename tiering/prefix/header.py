"""The header of a prefix file (pure).

::

    preamble      magic, version, length of the header, SHA-256 of it with zeros in its place, length of the JSON
    JSON          which model, how many tokens in how many blocks, which tensors each block has
    tokens        uint32, little-endian
    checksums     XXH3-64 of each block, and of the state if there is one, uint64, little-endian
    zeros         up to a PAGE
    blocks        one after the other: the tensors of each, every one padded to a PAGE
    state         tensors that belong to the whole prefix, for models that cannot go on from any other length

No place or length of a tensor is written down: they follow from dtypes and shapes, so none can contradict them. A file
that ends before a block or the state lacks it. The end of a prefix is evicted that way.
"""

import hashlib
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ..driving.strict_json import Fields, parse_json
from ..errors import PrefixDamaged, PrefixVersionError
from ..units import PAGE, align_up
from .chain import Chain
from .roles import StoredTensor, parse_parts, parse_state_parts

VERSION = 2
"""Files of version 1 did not say which layer a tensor is of, but by a name. They count as damaged."""
MAGIC = b"PNSTKKV\n"
LARGEST = 1 << 27
"""Most bytes of a valid header. Nearly all of it are tokens: the JSON says nothing about single blocks."""
MOST_TOKENS = 1 << 24
"""Tokens of a whole prefix, at most."""
LABEL = r"[^\0-\x1f\x7f-\x9f/]{1,255}"
"""What names a model for people: that of a folder."""
HASH = "[0-9a-f]{64}"

_PREAMBLE = struct.Struct("<8sIQ32sI")
_LONGEST_JSON = 1 << 20
_MOST_BYTES = 1 << 60
_UNKNOWN = "0" * 16


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
    header = Header(
        label=label,
        root=chain.root,
        parent=chain.before(first),
        first=first,
        block=chain.block,
        tokens=chain.span(first, count),
        parts=tuple(parts),
        blocks=(),
        state_parts=tuple(state_parts),
        state=None,
        explicit=explicit,
    )
    extents = count + bool(state_parts)
    return _placed(header, count, align_up(_PREAMBLE.size + len(_encode(header, count)) + 8 * extents, PAGE))


def _placed(header: Header, count: int, start: int) -> Header:
    """``header`` with the places of its ``count`` blocks and its state, from ``start`` on."""
    lengths = [sum(part.room for part in header.parts)] * count
    lengths += [sum(part.room for part in header.state_parts)] * bool(header.state_parts)
    extents = [Stored(at, n) for at, n in zip(accumulate(lengths, initial=start), lengths, strict=False)]
    state = extents.pop() if header.state_parts else None
    return replace(header, blocks=tuple(extents), state=state)


def dump(header: Header) -> bytes:
    """The bytes of the header in the file: ``header.start`` of them."""
    encoded = _encode(header, len(header.blocks))
    encoded += b"".join(int(extent.checksum, 16).to_bytes(8, "little") for extent in header.extents)
    body = encoded.ljust(header.start - _PREAMBLE.size, b"\0")
    size = len(_encode_json(header, len(header.blocks)))
    blank = _PREAMBLE.pack(MAGIC, VERSION, header.start, bytes(32), size)
    return _PREAMBLE.pack(MAGIC, VERSION, header.start, hashlib.sha256(blank + body).digest(), size) + body


def length_of(page: bytes, where: str) -> int:
    """Bytes of the header that begins with ``page``. Raises PrefixDamaged and PrefixVersionError as ``parse`` does."""
    if len(page) < _PREAMBLE.size:
        raise PrefixDamaged(f"{where} is damaged: it ends within its header")
    magic, version, length, _, _ = _PREAMBLE.unpack_from(page)
    if magic != MAGIC:
        raise PrefixDamaged(f"{where} is damaged: it is no prefix file")
    if version > VERSION:
        raise PrefixVersionError(f"{where} has version {version}, this penstock reads up to {VERSION}; upgrade it")
    if version < VERSION:
        raise PrefixDamaged(
            f"{where} has version {version}, which does not say what its tensors are; it goes when a prompt is stored"
        )
    if length % PAGE or not PAGE <= length <= LARGEST:
        raise PrefixDamaged(f"{where} is damaged: its header has an impossible length")
    return int(length)


def parse(raw: bytes, where: str) -> Header:
    """The inverse of ``dump``. ``where`` names the file in messages.

    Raises PrefixVersionError for a newer version, PrefixDamaged for any other fault.
    """
    length = length_of(raw, where)
    magic, version, _, digest, size = _PREAMBLE.unpack_from(raw)
    body = raw[_PREAMBLE.size :]
    blank = _PREAMBLE.pack(magic, version, length, bytes(32), size)
    if len(raw) != length or hashlib.sha256(blank + body).digest() != digest:
        raise PrefixDamaged(f"{where} is damaged: the checksum of its header does not match")
    try:
        return _decode(body, size, length)
    except ValueError as error:
        raise PrefixDamaged(f"{where} is damaged: {error}") from error


def _encode(header: Header, count: int) -> bytes:
    """All but the checksums of a header with ``count`` blocks."""
    return _encode_json(header, count) + struct.pack(f"<{len(header.tokens)}I", *header.tokens)


def _encode_json(header: Header, count: int) -> bytes:
    document = {
        "label": header.label,
        "root": header.root,
        "parent": header.parent,
        "first": header.first,
        "block": header.block,
        "blocks": count,
        "parts": [part.to_json() for part in header.parts],
        "state_parts": [part.to_json() for part in header.state_parts],
        "explicit": header.explicit,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def _decode(body: bytes, size: int, start: int) -> Header:
    """The header whose JSON has ``size`` bytes, and which ends at ``start``. Raises ValueError."""
    if not 0 < size <= min(len(body), _LONGEST_JSON):
        raise ValueError("its description has an impossible length")
    fields = Fields(parse_json(body[:size]))
    label, root, parent = fields.text("label", LABEL), fields.text("root", HASH), fields.text("parent", HASH)
    block = fields.whole("block", 1, MOST_TOKENS)
    count = fields.whole("blocks", 0, MOST_TOKENS // block)
    first = fields.whole("first", 0, MOST_TOKENS // block - count)
    parts = parse_parts(fields.take("parts"), block)
    state_parts = parse_state_parts(fields.take("state_parts"), (first + count) * block)
    explicit = fields.flag("explicit")
    fields.end()
    _check(parts, state_parts, count, first == 0 and parent != root)
    tokens_end = size + 4 * block * count
    end = tokens_end + 8 * (count + bool(state_parts))
    if align_up(_PREAMBLE.size + end, PAGE) != start or any(body[end:]):
        raise ValueError("it is not as long as its tokens and checksums")
    tokens = struct.unpack(f"<{block * count}I", body[size:tokens_end])
    header = Header(label, root, parent, first, block, tokens, parts, (), state_parts, None, explicit)
    checksums = [body[at : at + 8][::-1].hex() for at in range(tokens_end, end, 8)]
    return _placed(header, count, start).with_checksums(checksums)


def _check(parts: tuple[StoredTensor, ...], state_parts: tuple[StoredTensor, ...], count: int, is_astray: bool) -> None:
    if not count and not state_parts:
        raise ValueError("it holds nothing")
    if count and not parts and not state_parts:
        raise ValueError("its blocks hold nothing")
    if is_astray:
        raise ValueError("its first block follows another one")
    sizes = sum(part.room for part in parts) * count + sum(part.room for part in state_parts)
    if sizes > _MOST_BYTES:
        raise ValueError("its tensors are larger than any file")
    both = {part.role.layer for part in parts} & {part.role.layer for part in state_parts if part.role.is_kv}
    if both:
        raise ValueError(f"layer {min(both)} has keys in blocks and in the state")
