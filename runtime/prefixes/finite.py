"""Whether stored numbers are finite: no model that gives a text has written others."""

import numpy as np

from ...tiering.errors import PrefixDamaged
from ...tiering.prefix.roles import StoredTensor

_STEP = 1 << 17
"""Bytes looked at in one go: they, and what is made of them, stay in the cache of a core."""

_LEAST = {
    "float64": (np.uint64, 0x7FF << 53),
    "float32": (np.uint32, 0xFF << 24),
    "bfloat16": (np.uint16, 0xFF << 8),
    "float16": (np.uint16, 0x1F << 11),
    "float8_e5m2": (np.uint8, 0x1F << 3),
    "float8_e4m3fn": (np.uint8, 0x7F << 1),
}
"""By dtype: an integer of its size, and the least such integer that is, without its sign, infinite or no number. The
sign is the highest bit, and is shifted out."""


def check_finite(buffer: memoryview, part: StoredTensor) -> None:
    """Raise PrefixDamaged if a number of ``part`` in ``buffer`` is infinite or none. At the speed of memory."""
    kind, least = _LEAST[part.dtype]
    numbers = np.frombuffer(buffer, kind)
    step = _STEP // numbers.itemsize
    shifted = np.empty(min(step, len(numbers)), kind)
    for at in range(0, len(numbers), step):
        piece = numbers[at : at + step]
        without_sign = np.left_shift(piece, 1, out=shifted[: len(piece)])
        if without_sign.max() >= least:
            raise PrefixDamaged(f"a stored prompt has {part.name} with a number that is not finite")
