"""What a GGUF file's header says (pure), and the types that it may have: of values, and of tensors with the bytes of a
block."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

Value = int | float | bool | str


class BlockType(NamedTuple):
    """A type of tensors: ``numbers`` of a row lie together in ``length`` bytes."""

    name: str
    numbers: int
    length: int


BLOCK_TYPES: dict[int, BlockType] = {
    code: BlockType(*each)
    for code, each in {
        0: ("F32", 1, 4),
        1: ("F16", 1, 2),
        2: ("Q4_0", 32, 18),
        3: ("Q4_1", 32, 20),
        6: ("Q5_0", 32, 22),
        7: ("Q5_1", 32, 24),
        8: ("Q8_0", 32, 34),
        9: ("Q8_1", 32, 40),
        10: ("Q2_K", 256, 84),
        11: ("Q3_K", 256, 110),
        12: ("Q4_K", 256, 144),
        13: ("Q5_K", 256, 176),
        14: ("Q6_K", 256, 210),
        15: ("Q8_K", 256, 292),
        16: ("IQ2_XXS", 256, 66),
        17: ("IQ2_XS", 256, 74),
        18: ("IQ3_XXS", 256, 98),
        19: ("IQ1_S", 256, 50),
        20: ("IQ4_NL", 32, 18),
        21: ("IQ3_S", 256, 110),
        22: ("IQ2_S", 256, 82),
        23: ("IQ4_XS", 256, 136),
        24: ("I8", 1, 1),
        25: ("I16", 1, 2),
        26: ("I32", 1, 4),
        27: ("I64", 1, 8),
        28: ("F64", 1, 8),
        29: ("IQ1_M", 256, 56),
        30: ("BF16", 1, 2),
        34: ("TQ1_0", 256, 54),
        35: ("TQ2_0", 256, 66),
        39: ("MXFP4", 32, 17),
        40: ("NVFP4", 64, 36),
        41: ("Q1_0", 128, 18),
    }.items()
}
"""By the number that a file has for it, as in ggml.h."""

SCALARS: dict[int, str] = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""The code for ``struct`` of each value of a fixed size, by the number that a file has for it."""
STRING, ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufArray:
    """An array of a header: its ``type``, and its ``values`` if they are few numbers. Its elements are the ``length``
    bytes at ``offset`` of the file."""

    type: int
    count: int
    values: tuple[Value, ...] | None
    offset: int
    length: int


class HeaderTensor(NamedTuple):
    """A tensor of ``length`` bytes at ``offset`` of the file; ``shape`` has the length of a row last."""

    name: str
    kind: str
    shape: tuple[int, ...]
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class GgufHeader:
    """What a header says: ``values`` and ``arrays`` by key, ``tensors`` by name. ``short`` are the entries of all
    values and short arrays as the file has them, one behind the other."""

    version: int
    values: Mapping[str, Value]
    arrays: Mapping[str, GgufArray]
    tensors: Mapping[str, HeaderTensor]
    short: tuple[bytes, ...]
