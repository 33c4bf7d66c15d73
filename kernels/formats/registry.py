"""The weight formats that there are, by name."""

from collections.abc import Mapping

from .base import Format
from .int4 import Int4
from .int8 import Int8
from .nested import NESTED, STACKED

_ALL: tuple[Format, ...] = (Int8(), Int4(32), Int4(64), Int4(128), NESTED, STACKED)

FORMATS: Mapping[str, Format] = {each.name: each for each in _ALL}
"""As manifests name them. A new format is a module, and a line here."""
