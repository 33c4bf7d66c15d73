"""Tiles of the lossless format in numpy, for any machine. kernels/csrc/formats/lossless.h describes the layout."""

import numpy as np
from numpy.typing import NDArray

ROWS = 16
"""Rows of a tile."""
_GROUP = 64  # numbers
_LEVELS = 3
_HEAD = 4 * (_LEVELS + 2)

_SHIFTS = np.arange(0, 8, 2, dtype=np.uint8)

Bytes = NDArray[np.uint8]
Words = NDArray[np.uint16]


def least_tile(k: int) -> int:
    """Return the fewest bytes of a tile of ``k`` columns: codes, signs and mantissas, or all numbers plain."""
    return min(_HEAD + ROWS * k // 4 + ROWS * k, 2 * ROWS * k)


def encode_tile(words: Words) -> Bytes:
    """Encode the tile of ``words`` [16, k], k a multiple of 4."""
    grouped = _groups(words)
    exponents = (grouped >> 7).astype(np.uint8)
    often = np.bincount(exponents.ravel(), minlength=256)
    # The most frequent first. Of equally frequent ones the lower first.
    ranked = np.argsort(-often, kind="stable")[: 3 * _LEVELS]
    ranked = ranked[often[ranked] > 0]
    rank = np.full(256, 3 * _LEVELS, np.uint8)
    rank[ranked] = np.arange(len(ranked))
    tables = np.zeros((_LEVELS, 4), np.uint8)
    tables[np.arange(len(ranked)) // 3, np.arange(len(ranked)) % 3 + 1] = _turned(ranked.astype(np.uint8))
    left, levels = rank[exponents].ravel(), list[Bytes]()
    for level in range(_LEVELS):
        coded = left < 3 * (level + 1)
        levels.append(np.where(coded, left + 1 - 3 * level, 0).astype(np.uint8))
        left = left[~coded]
    counts = np.array([len(levels[1]), len(levels[2])], np.uint32)
    rest = (grouped >> 8 & 0x80 | grouped & 0x7F).astype(np.uint8)
    tile = np.concatenate(
        [
            tables.ravel(),
            counts.view(np.uint8),
            _packed(levels[1]),
            _packed(levels[2]),
            _turned(exponents[rank[exponents] == 3 * _LEVELS].ravel()),
            _merged(levels[0].reshape(-1, 4, _GROUP // 4).swapaxes(1, 2)),
            rest.ravel(),
        ]
    )
    raw = np.ascontiguousarray(words).view(np.uint8).ravel()
    return tile if len(tile) < len(raw) else raw


def decode_tile(tile: Bytes, k: int) -> Words | None:
    """Decode the words [16, k] of a tile. None if it is visibly damaged."""
    numbers = ROWS * k
    if len(tile) == 2 * numbers:
        return np.frombuffer(tile.tobytes(), np.uint16).reshape(ROWS, k)
    escaped = len(tile) - _HEAD - numbers // 4 - numbers
    if escaped < 0:
        return None
    tables = tile[: 4 * _LEVELS].reshape(_LEVELS, 4)
    counts = np.frombuffer(tile[4 * _LEVELS : _HEAD].tobytes(), np.uint32).tolist()
    first, second = (-(-count // 4) for count in counts)
    if first + second > escaped:
        return None
    levels, codes, rest = np.split(tile[_HEAD:], [escaped, escaped + numbers // 4])
    one, two, others = np.split(levels, [first, first + second])
    code = _parted(codes.reshape(-1, _GROUP // 4)).swapaxes(1, 2).ravel()
    exponents = tables[0][code]
    where = np.flatnonzero(code == 0)
    for table, count, level in zip(tables[1:], counts, (one, two), strict=True):
        code = _parted(level).ravel()[:count]
        if len(code) != len(where):
            return None
        exponents[where] = table[code]
        where = where[code == 0]
    if len(others) != len(where):
        return None
    exponents[where] = others
    low, high = rest & 0x7F | exponents & 0x80, rest & 0x80 | exponents & 0x7F
    return _rows(low | high.astype(np.uint16) << 8, k)


def _groups(words: Words) -> Words:
    """Reorder words [16, k] to [k / 4, 64], the order of their codes."""
    return words.reshape(4, 4, -1, 2, 2).transpose(2, 0, 3, 1, 4).reshape(-1, _GROUP)


def _rows(groups: Words, k: int) -> Words:
    """Reorder ``groups`` back to [16, k], the inverse of ``_groups``."""
    return groups.reshape(-1, 4, 2, 4, 2).transpose(1, 3, 0, 2, 4).reshape(ROWS, k)


def _turned(exponents: Bytes) -> Bytes:
    return exponents >> np.uint8(1) | exponents << np.uint8(7)


def _packed(codes: Bytes) -> Bytes:
    """Pack codes of two bits, four in a byte. The last byte is padded with zeros."""
    return _merged(np.pad(codes, (0, -len(codes) % 4)).reshape(-1, 4))


def _merged(codes: Bytes) -> Bytes:
    """Merge each four of ``codes`` [.., 4] to a byte."""
    shifted: Bytes = codes << _SHIFTS
    return (shifted[..., 0] | shifted[..., 1] | shifted[..., 2] | shifted[..., 3]).ravel()


def _parted(packed: Bytes) -> Bytes:
    """Split each byte into its four codes: [.., 4]."""
    return packed[..., None] >> _SHIFTS & np.uint8(3)
