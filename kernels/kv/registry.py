"""All KV formats, by name."""

from collections.abc import Mapping

from .as_is import AsIs
from .base import KVFormat
from .int4 import INT4
from .int8 import INT8

_ALL: tuple[KVFormat, ...] = (AsIs(), INT8, INT4)

FORMATS: Mapping[str, KVFormat] = {format_.name: format_ for format_ in _ALL}
"""By the names in settings and files. A new format is a module, and a line here."""
