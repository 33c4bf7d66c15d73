"""The weight formats that a CUDA device can use as stored, by name."""

from functools import cache

from ..formats.int4 import Int4
from ..formats.nested import BitNested
from ..formats.registry import FORMATS
from .base import DeviceFormat


@cache
def find_device_format(name: str) -> DeviceFormat | None:
    """Return the format ``name`` on a device. None if there is none.

    Modules with kernels are imported here, when a device first needs one. Raises NoTriton where that package is absent.
    """
    format = FORMATS.get(name)
    if name == "int8":
        from .int8 import Int8OnDevice

        return Int8OnDevice()
    if name == "lossless":
        from .lossless import LosslessOnDevice

        return LosslessOnDevice()
    if isinstance(format, Int4):
        from .int4 import Int4OnDevice

        return Int4OnDevice(format)
    if isinstance(format, BitNested):
        from .nested import NestedOnDevice

        return NestedOnDevice(format)
    return None
