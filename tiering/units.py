"""Block ids, extents on flash, byte sizes (pure)."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from ..kernels.memory.page import PAGE as PAGE
from .errors import ConfigError

KiB, MiB, GiB = 1 << 10, 1 << 20, 1 << 30

RESIDUALS = 4
"""Most planes of a matrix besides the first."""

BlockKind = Literal["dense", "expert", "residual"]


class BlockId(NamedTuple):
    """Identity of a block: an immutable run of bytes that moves between tiers as a whole.

    ``module`` is the dotted path of the module that computes on it. ``part`` is the expert's index for an expert, a
    number made by ``residual`` for a residual, and a running number otherwise. It is a tuple because it is a dictionary
    key on the hit path.
    """

    kind: BlockKind
    module: str
    part: int = 0

    def residual(self, plane: int) -> "BlockId":
        """The block of plane ``plane``, from 1 on, whose first plane is in this block."""
        return BlockId("residual", self.module, self.part * RESIDUALS + plane - 1)

    @property
    def expert(self) -> int | None:
        """The index of this block's expert; None for a dense block."""
        return {"dense": None, "expert": self.part, "residual": self.part // RESIDUALS}[self.kind]

    def __str__(self) -> str:
        return f"{self.kind}:{self.module}" if self.kind == "dense" else f"{self.kind}:{self.module}[{self.part}]"


def residuals(blocks: Iterable[BlockId]) -> dict[BlockId, tuple[BlockId, ...]]:
    """The residuals among ``blocks``, by their expert's block, in the order of planes."""
    found: dict[BlockId, tuple[BlockId, ...]] = {}
    for block in sorted(block for block in blocks if block.kind == "residual"):
        expert = BlockId("expert", block.module, block.part // RESIDUALS)
        found[expert] = (*found.get(expert, ()), block)
    return found


@dataclass(frozen=True, slots=True)
class Extent:
    """A block's place on flash: ``length`` bytes at ``offset`` of data file number ``file``, both PAGE multiples."""

    file: int
    offset: int
    length: int

    @property
    def end(self) -> int:
        return self.offset + self.length


def align_up(size: int, to: int = PAGE) -> int:
    """The least multiple of ``to`` that is not below ``size``."""
    return -(-size // to) * to


_UNITS = {"": 1, "B": 1}
for _power, _letter in enumerate("KMGT", 1):
    _UNITS |= {_letter: 1024**_power, f"{_letter}IB": 1024**_power, f"{_letter}B": 1000**_power}


def parse_size(value: str | int) -> int:
    """Bytes in ``"1.5GiB"``, ``"800MB"``, ``"2G"`` (binary) or an int. Raises ConfigError when it is neither."""
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ConfigError(f'a size is a number of bytes or a text like "1.5GiB", not {value!r}')
    if isinstance(value, int):
        size = value
    else:
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", value)
        if match is None or match[2].upper() not in _UNITS:
            raise ConfigError(f'{value!r} is not a size; write it like "1.5GiB", "800MB" or a number of bytes')
        size = int(float(match[1]) * _UNITS[match[2].upper()])
    if size < 0:
        raise ConfigError(f"{value!r} is not a size: it is negative")
    return size


def format_size(size: int) -> str:
    """``size`` bytes for people: ``"1.50 GiB"``."""
    for unit, letter in ((GiB, "GiB"), (MiB, "MiB"), (KiB, "KiB")):
        if abs(size) >= unit:
            return f"{size / unit:.2f} {letter}"
    return f"{size} B"
