"""The check of encoded matrices as they arrive, beside the checksum, which only says that bytes are those packed.

Kernels follow some values of a plane: where a tile ends, where a column goes. What passes here is multiplied without an
error. It costs nothing later: a block in memory is not looked at again.
"""

from collections.abc import Callable

import torch

from ....kernels.formats.base import Window
from ....kernels.formats.checks import find_format
from ....kernels.formats.planes import find_fault
from .manifest import Block, TensorSpec

Read = Callable[[int, int], torch.Tensor]
"""``read(start, length)`` gives some bytes of a block in host memory, uint8 [length], valid until the next call."""


def to_check(block: Block) -> tuple[TensorSpec, ...]:
    """Return the planes of ``block`` whose bytes must be checked: those that are not a matrix whatever they are."""
    return tuple(spec for spec in block.tensors if spec.packing and not _takes_any_bytes(spec.packing.format))


def _takes_any_bytes(name: str) -> bool:
    try:
        return find_format(name).any_bytes
    except ValueError:
        return False


def find_fault_in(block: Block, read: Read, at_once: int | None = None) -> str | None:
    """Return which tensor of ``block`` is not what it says, and why, or None. ``at_once`` as for ``find_fault``."""
    for spec in to_check(block):
        why = _find_fault(spec, read, at_once)
        if why is not None:
            return f"holds no matrix in {spec.name} (byte {spec.offset} of it): {why}"
    return None


def _find_fault(spec: TensorSpec, read: Read, at_once: int | None) -> str | None:
    packing = spec.packing
    assert packing is not None
    try:
        format_ = find_format(packing.format)
    except ValueError as error:
        return str(error)
    return find_fault(format_, packing.plane, *spec.encoded_shape, spec.length, _window(spec, read), at_once)


def _window(spec: TensorSpec, read: Read) -> Window:
    return lambda start, length: read(spec.offset + start, length)
