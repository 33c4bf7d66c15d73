"""How a bundle's bytes are divided among weight formats."""

from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from typing import Any

from ...tiering.store.bundle.manifest import Manifest, TensorSpec
from ..config.settings import Weights

AS_IS = Weights().format


@dataclass(frozen=True, slots=True)
class Share:
    """The matrices, or other weights, that are stored in one way: ``planes`` of them, 0 for those that are as they
    are."""

    format: str
    planes: int
    matrices: int
    bytes: int
    numbers: int

    def described(self) -> dict[str, Any]:
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
        return 8 * self.bytes / max(1, self.numbers)


def shares(manifest: Manifest) -> list[Share]:
    """Of the bytes of all weights, without what fills up blocks; the largest first."""
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
