"""The bytes of a bundle by weight format."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from ...tiering.store.bundle.manifest import Manifest, TensorSpec

AS_IS = "as-is"


@dataclass(frozen=True, slots=True)
class Share:
    """The weights that are stored in one way: in how many ``planes``, 0 for those that are stored as they are;
    ``numbers`` weights in ``bytes`` bytes."""

    format: str
    planes: int
    matrices: int
    bytes: int
    numbers: int

    def to_dict(self) -> dict[str, Any]:
        """The fields of ``--json``."""
        return {
            "format": self.format,
            "planes": self.planes,
            "matrices": self.matrices,
            "bytes": self.bytes,
            "bits_per_weight": self.bits,
        }

    @property
    def bits(self) -> float:
        """Bits of a weight."""
        return 8 * self.bytes / max(1, self.numbers)


def shares(manifest: Manifest) -> list[Share]:
    """The shares of all weights, the largest first. Padding of blocks is not counted."""
    stored: dict[tuple[str, int | None], list[TensorSpec]] = {}
    for block in manifest.blocks:
        for spec in block.tensors:
            stored.setdefault((spec.name, block.id.expert), []).append(spec)
    alike: dict[tuple[str, int], list[list[TensorSpec]]] = {}
    for planes in stored.values():
        packing = planes[0].packing
        alike.setdefault((packing.format, len(planes)) if packing else (AS_IS, 0), []).append(planes)
    found = [
        Share(format_, planes, len(each), _bytes(each), sum(prod(specs[0].shape) for specs in each))
        for (format_, planes), each in alike.items()
    ]
    return sorted(found, key=lambda share: -share.bytes)


def _bytes(matrices: Iterable[list[TensorSpec]]) -> int:
    return sum(spec.length for specs in matrices for spec in specs)
